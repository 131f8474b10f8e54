"""Forest plots: each experiment's estimate with its interval, and below them the mean under both estimands."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.metrics.bootstrap import FIXED, RANDOM
from psyfast.metrics.effect_tables import SIDES
from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.post_training_figures import NEEDS_PAIRS
from psyfast.report.style import FAINT, chosen, vertical
from psyfast.report.view import caption, triangles, within_view
from psyfast.report.words import counted, no_effect

_EFFECTS = ("pair_effects", "persona_effects", "template_effects", "condition_effects")
MEANS = {FIXED: "mean, studies fixed", RANDOM: "mean, studies random"}
_PLAIN_COLOUR, _MEAN_COLOUR = "#0072B2", "#000000"


def forest_figures(findings: Findings) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order: effects of a comparison, then NLLs of a model."""
    return _effects(findings), _nlls(findings)


def _effects(findings: Findings) -> Figure:
    name, title = "forest", "Effect by experiment"
    effects = [findings.table(table) for table in _EFFECTS if table in findings.metrics.tables]
    tested = pl.concat(effects).select(*SIDES, "experiment", "q_value").unique([*SIDES, "experiment"])
    found = findings.table("intervals").filter(pl.col("estimate").is_not_null(), quantity="d")
    found = found.unique([*SIDES, "experiment", "estimand"], maintain_order=True)
    if found.is_empty():
        needs = f"{NEEDS_PAIRS} Or score a model under two conditions, such as plain and persona, or plain and chat."
        if len(tested):
            needs = no_effect("pair_effects")
        return Figure(name, title, missing=needs)
    frame = found.join(tested, on=[*SIDES, "experiment"], how="left", maintain_order="left")
    frame = frame.with_columns(comparison=_comparison(frame), model=pl.col("model_b"))
    first = _first(frame, findings)
    frame = _as_rows(frame, ["comparison"]).with_columns(is_default_comparison=pl.col("comparison") == first)
    num = frame["comparison"].n_unique()
    return Figure(
        name,
        title,
        f"Cohen's d over the responses that both sides scored (ddof 1); above 0, the second side predicts worse. {_BARS} {caption(frame)} "
        f"{counted(num, 'comparison')} to choose from; click a row to choose its experiment.",
        ("intervals", "pair_effects", "persona_effects", "template_effects"),
        _chart("comparison", "effect size d", zero=True),
        {"rows": frame},
        ("comparison", "experiment"),
        {"comparison": first},
        picks="experiment",
    )


_BARS = (
    "Bars: 95 % intervals, participants resampled (studies fixed); of the mean below, once with the studies fixed and once "
    "with studies random. An experiment of one participant has no interval."
)


def _comparison(frame: pl.DataFrame) -> pl.Series:
    """What is compared, as one text a row."""
    texts = []
    for model_a, condition_a, model_b, condition_b in frame.select(SIDES).rows():
        if model_a == model_b:
            texts.append(f"{model_a}: {condition_a} → {condition_b}")
        else:
            texts.append(f"{model_a} → {model_b}, {condition_a}")
    return pl.Series("comparison", texts, dtype=pl.String)


def _first(frame: pl.DataFrame, findings: Findings) -> str:
    """The comparison shown at first: of a pair under the default condition where there is one."""
    of_pair = pl.col("model_a") != pl.col("model_b")
    preferred = frame.filter(of_pair, condition_a=findings.condition)
    return str((preferred if len(preferred) else frame)["comparison"][0])


def _as_rows(frame: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Rows of the plots `by`: the label `row`, whether it `is_mean`, the `order` within a plot, what is in view."""
    is_mean = pl.col("experiment").is_null()
    shown = within_view(frame, "estimate", [("low", "high")], by)
    return shown.with_columns(
        row=pl.when(is_mean).then(pl.col("estimand").replace_strict(MEANS)).otherwise(pl.col("experiment")),
        is_mean=is_mean,
        order=pl.when(is_mean).then(1e9 + (pl.col("estimand") == RANDOM)).otherwise(-pl.col("estimate")),
    ).drop("quantity", "se", "pooled_low", "pooled_high")


def _nlls(findings: Findings) -> Figure:
    name, title = "forest-nll", "NLL by experiment"
    found = findings.table("intervals").filter(pl.col("estimate").is_not_null(), quantity="nll_nats")
    frame = found.drop("model_b", "condition_b").rename({"model_a": "model", "condition_a": "condition"})
    frame = findings.with_defaults(_as_rows(frame, ["model", "condition"]))
    return Figure(
        name,
        title,
        f"Mean NLL of the responses, in nats; one model at a time. {_BARS} {caption(frame)}",
        ("intervals", "experiments"),
        _chart("model", "NLL, nats a response (lower is better)", zero=False),
        {"rows": frame},
        ("model", "condition", "experiment"),
        {"model": findings.default_model},
        picks="experiment",
    )


def _chart(one: str, x_title: str, *, zero: bool) -> alt.LayerChart:
    """One row an experiment, of the one comparison or model that is chosen."""
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen(one))
    if one == "model":
        base = base.transform_filter(chosen("condition"))
    x = alt.Scale(zero=zero)
    shared = {
        "y": alt.Y("row:N", title=None, sort=alt.EncodingSortField("order", op="min"), axis=alt.Axis(grid=True)),
        "color": alt.condition("datum.is_mean", alt.value(_MEAN_COLOUR), alt.value(_PLAIN_COLOUR)),
        "opacity": alt.condition(
            "only_experiment === null || datum.experiment === only_experiment || datum.is_mean",
            alt.value(1.0),
            alt.value(FAINT),
        ),
    }
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low_shown:Q", title=x_title, scale=x), x2="high_shown:Q", **shared
    )
    tests = [alt.Tooltip("q_value:Q", title="q (Benjamini-Hochberg)", format=".3f")] if one == "comparison" else []
    points = base.mark_point(filled=True, size=60).encode(
        x=alt.X("estimate:Q", title=x_title, scale=x),
        shape=alt.condition("datum.is_mean", alt.value("diamond"), alt.value("circle")),
        tooltip=[
            alt.Tooltip(f"{one}:N"),
            alt.Tooltip("row:N", title="experiment"),
            "estimand:N",
            *(alt.Tooltip(f"{column}:Q", format=".3f") for column in ("estimate", "low", "high")),
            *tests,
            alt.Tooltip("num_participants:Q", format=","),
        ],
        **shared,
    )
    zeros = (vertical(0),) if zero else ()
    chart: alt.LayerChart = alt.layer(*zeros, bars, *triangles(base, **shared), points).properties(
        width="container", height=alt.Step(20)
    )
    return chart
