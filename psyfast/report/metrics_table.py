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
            _number(row["above_markov_nats"], signed=True) + ("" if row["beats_markov"] is not False else " !"),
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


def _share(row: dict[str, Any]) -> str:
    """Percentage of the scored responses that have a choice set, marked where an experiment has it for fewer than 95 %."""
    if not row["share_of_responses"]:
        return DASH
    return f"{100 * row['share_of_responses']:.0f}" + (" *" if row["is_partial"] else "")


def _legend(metrics: Metrics) -> list[str]:
    models = metrics.tables["models"]
    lines = ["interval: studies fixed, participants resampled (bootstrap-t); `intervals` has studies random and pooled"]
    if models["above_markov_nats"].is_not_null().any():
        lines.append("over Markov: NLL above that of a chain over the participant's own responses; ! does not beat it")
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
    }
    return [
        _effect_table(title, metrics.tables[name].to_dicts())
        for name, title in names.items()
        if len(metrics.tables[name])
    ]


def _effect_table(title: str, rows: list[dict[str, Any]]) -> Table:
    shown = _empty()
    shown.title, shown.title_justify, shown.title_style = title, "left", "bold"
    for heading in ("a", "b"):
        shown.add_column(heading, overflow="fold")
    shown.add_column("experi-\nments", justify="right", no_wrap=True)
    shown.add_column("d", justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(_side(row, "a"), _side(row, "b"), f"{row['num_experiments']:,}", _number(row["d"], signed=True))
    return shown


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
