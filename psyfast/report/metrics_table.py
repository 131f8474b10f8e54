"""What `psyfast metrics` prints: a line a model and condition, then the effects of what was compared."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from psyfast.metrics.bootstrap import FIXED
from psyfast.metrics.compute import Metrics
from psyfast.metrics.contrasts import CHAT, SHUFFLED_PERSONA, WITH_PERSONA

DASH = "–"


def print_metrics(metrics: Metrics, console: Console) -> None:
    """Print the main table, the tables of effects that have rows, and the notes."""
    for shown in (_model_table(metrics), *_effect_tables(metrics)):
        console.print(shown)
        console.print()
    for note in (*_legend(metrics), *metrics.notes):
        console.print(note, style="dim", highlight=False)


def _model_table(metrics: Metrics) -> Table:
    rows = metrics.tables["models"].to_dicts()
    shown = _empty()
    shown.add_column("model", overflow="fold")
    with_condition = {row["condition"] for row in rows} != {"plain"}
    if with_condition:
        shown.add_column("condition", overflow="fold")
    counts = () if with_condition else ("experi-\nments", "responses")  # 80 columns do not hold everything
    for heading in (*counts, "NLL\nnats", "95 % interval", "sets\n%", "pseudo-\nR²", "over\nMarkov"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            escape(row["model"]),
            *([escape(row["condition"])] if with_condition else []),
            *(() if with_condition else (f"{row['num_experiments']:,}", f"{row['num_scored']:,}")),
            _number(row["nll_nats"]),
            _interval(metrics, row["model"], row["condition"]),
            _share(row),
            _number(row["pseudo_r2"]),
            _number(row["above_markov_nats"], signed=True) + _markov_mark(row),
        )
    return shown


def _interval(metrics: Metrics, model: str, condition: str) -> str:
    """The interval of a model's NLL with the studies fixed."""
    mine = (pl.col("model_a") == model) & (pl.col("condition_a") == condition) & pl.col("experiment").is_null()
    of_nll = (pl.col("quantity") == "nll_nats") & (pl.col("estimand") == FIXED)
    found = metrics.tables["intervals"].filter(mine & of_nll).to_dicts()
    if not found or found[0]["low"] is None:
        return DASH
    return f"{found[0]['low']:.3f} – {found[0]['high']:.3f}"


def _markov_mark(row: dict[str, Any]) -> str:
    """`!` where the model does not beat the chain, `?` where the interval (studies fixed) holds 0."""
    low, high = row["above_markov_low_fixed"], row["above_markov_high_fixed"]
    mark = "!" if row["beats_markov"] is False else ""
    mark += "?" if low is not None and high is not None and low <= 0 <= high else ""
    return f" {mark}" if mark else ""


def _share(row: dict[str, Any]) -> str:
    """Percentage of the scored responses that have a choice set, marked where an experiment has it for fewer than 95 %."""
    if not row["share_of_responses"]:
        return DASH
    return f"{100 * row['share_of_responses']:.0f}" + (" *" if row["is_partial"] else "")


def _legend(metrics: Metrics) -> list[str]:
    models = metrics.tables["models"]
    lines = [
        "interval of the NLL: studies fixed, participants resampled (bootstrap-t; Student's t of few); `intervals` has studies random"
    ]
    if any(len(metrics.tables[name]) for name in ("pairs", "persona", "template", "conditions")):
        lines.append("interval of d: studies random (experiments like these); low_fixed, high_fixed have studies fixed")
    if models["above_markov_nats"].is_not_null().any():
        lines.append(
            "over Markov: NLL above that of a chain over the participant's own responses; ! does not beat it; "
            "? the interval of the difference holds 0"
        )
    if models["share_of_responses"].fill_null(0).gt(0).any():
        lines.append(
            "sets: share of responses with a choice set, over which pseudo-R² is; of participants "
            f"{_percent(models['share_of_participants'])}"
        )
    if metrics.tables["choices"]["is_partial"].any():
        lines.append("* warning: fewer than 95 % of the responses of an experiment have a set (`choices`)")
    for row in metrics.tables["equivalence"].to_dicts():
        if row["is_equivalent"] is not None:
            verdict = "is" if row["is_equivalent"] else "is not"
            lines.append(
                f"{row['model_a']}, {row['condition_a']} against {row['condition_b']}, {row['estimand']}: d {verdict} "
                f"shown to be within ±{row['margin']:g} (90 % interval {row['low_90']:+.3f} to {row['high_90']:+.3f})"
            )
    return lines


def _percent(shares: pl.Series) -> str:
    """The range of some shares."""
    low, high = (f"{100 * float(share):.0f}" for share in (shares.fill_null(0).min(), shares.fill_null(0).max()))  # type: ignore[arg-type]
    return f"{low} %" if low == high else f"{low} to {high} %"


def _effect_tables(metrics: Metrics) -> list[Table]:
    names = {
        "pairs": "base → post-trained (d > 0: post-training made it worse)",
        "persona": "persona (d > 0: it helps)",
        "template": "chat template (d > 0: it harms)",
        "conditions": "condition against plain (d > 0: it helps)",
        "types": "types, means over pairs (d > 0: worse)",
        "generations": "generations, means over pairs (d > 0: worse)",
    }
    return [
        _effect_table(title, rows)
        for name, title in names.items()
        if (rows := [row for row in metrics.tables[name].to_dicts() if name != "conditions" or _is_new(row)])
    ]


def _is_new(row: dict[str, Any]) -> bool:
    """Whether a row of `conditions` is shown in no table of its own."""
    return row["condition_a"] not in (CHAT, WITH_PERSONA, SHUFFLED_PERSONA)


def _effect_table(title: str, rows: list[dict[str, Any]]) -> Table:
    shown = _empty()
    shown.title, shown.title_justify, shown.title_style = title, "left", "bold"
    of_pairs = "num_pairs" in rows[0]
    for heading in rows[0] if of_pairs else ("a", "b"):
        if heading == "num_pairs":
            break
        shown.add_column(heading, overflow="fold")
    shown.add_column("pairs" if of_pairs else "experi-\nments", justify="right", no_wrap=True)
    for heading in ("d", "95 % interval"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        names = (
            [escape(str(value)) for value in list(row.values())[:2]] if of_pairs else [_side(row, "a"), _side(row, "b")]
        )
        count = row["num_pairs" if of_pairs else "num_experiments"]
        shown.add_row(*names, f"{count:,}", _number(row["d"], signed=True), _limits(row))
    return shown


def _limits(row: dict[str, Any]) -> str:
    return DASH if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"


def _side(row: dict[str, Any], side: str) -> str:
    condition = row[f"condition_{side}"]
    both_plain = row["condition_a"] == row["condition_b"] == "plain"
    return escape(row[f"model_{side}"] + ("" if both_plain else f", {condition}"))


def _number(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return DASH
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def _empty() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
