"""What a persona and a chat template change, by model."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.metrics.contrasts import CHAT, PLAIN, SHUFFLED_PERSONA, WITH_PERSONA
from psyfast.metrics.effect_tables import SIDES
from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.interval_chart import Row, bars_caption, interval_chart, with_view
from psyfast.report.style import colour
from psyfast.report.words import no_effect

_COMPARISONS = {
    (WITH_PERSONA, PLAIN): "persona against plain",
    (SHUFFLED_PERSONA, PLAIN): "another's persona against plain",
    (WITH_PERSONA, SHUFFLED_PERSONA): "persona against another's",
}


OTHERS = "conditions"
"""The table of every condition against `plain`, where the metrics have it."""
_OWN_FIGURES = (WITH_PERSONA, SHUFFLED_PERSONA, CHAT)


def condition_figures(findings: Findings) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order."""
    others = (_others(findings),) if OTHERS in findings.metrics.tables else ()
    return _persona(findings), _template(findings), *others


def _effects(findings: Findings, table: str, margin: float | None = None) -> pl.DataFrame:
    """The d of each contrast of a table with both intervals (null where it has none), models in the order of their NLL.

    margin: on either side of 0, in view in any case.
    """
    frame = findings.table(table).filter(pl.col("d").is_not_null()).select(*SIDES, "num_experiments", "d")
    intervals = findings.intervals("d", SIDES).drop("estimate", "num_experiments")
    order = findings.models.group_by("model").agg(pl.col("order").min())
    joined = (
        frame.join(intervals, on=SIDES, how="left", maintain_order="left")
        .with_columns(model=pl.col("model_a"))
        .join(order, on="model", how="left", maintain_order="left")
    )
    return with_view(joined, "d", None if margin is None else (-margin, margin))


def _persona(findings: Findings) -> Figure:
    name, title = "persona", "Benefit of a persona, by model"
    margin = findings.metrics.config.margin
    frame = _effects(findings, "persona", margin)
    if frame.is_empty():
        needs = "No model has the conditions plain and persona: score with --condition plain,persona (and shuffled-persona, the control)."
        if len(findings.metrics.tables["persona"]):
            needs = no_effect("persona_effects")
        return Figure(name, title, missing=needs)
    tested = findings.table("equivalence").filter(estimand="studies fixed").select(*SIDES, "is_equivalent", "p_value")
    frame = frame.join(tested, on=SIDES, how="left", maintain_order="left").with_columns(
        comparison=pl.struct("condition_a", "condition_b").map_elements(
            lambda row: _COMPARISONS[row["condition_a"], row["condition_b"]], return_dtype=pl.String
        ),
    )
    verdict = pl.col("is_equivalent").replace_strict({True: "shown", False: "not shown"}, default="not tested")
    frame = frame.with_columns(within_margin=verdict)
    values = tuple(value for value in _COMPARISONS.values() if value in set(frame["comparison"]))
    tooltip = ["comparison:N", *Row.tooltip[2:], alt.Tooltip("d:Q", format="+.3f"), "within_margin:N"]
    row = Row(
        "model",
        "d",
        "effect size d (above 0: the first of the two predicts better)",
        colour("comparison", values, None),
        ["model:N", *tooltip],
        offset=("comparison", *values),
        filters=(),
    )
    band = alt.Chart(alt.NamedData("margin")).mark_rect(color="#000000", opacity=0.07)
    return Figure(
        name,
        title,
        f"Cohen's d over responses, averaged over experiments. {bars_caption(frame)} Grey band: the margin of ±{margin:g}. "
        + _verdicts(frame, margin),
        ("persona", "intervals", "equivalence"),
        interval_chart(row, band.encode(x="low:Q", x2="high:Q")),
        {"rows": frame, "margin": pl.DataFrame({"low": [-margin], "high": [margin]})},
        ("model",),
    )


def _verdicts(frame: pl.DataFrame, margin: float) -> str:
    """How many models are shown to gain nothing, in one sentence a comparison."""
    lines = []
    for comparison in _COMPARISONS.values():
        mine = frame.filter(comparison=comparison)
        if num := mine["is_equivalent"].drop_nulls().len():
            shown = int(mine["is_equivalent"].fill_null(False).sum())
            lines.append(
                f"{comparison[0].upper()}{comparison[1:]}: d is shown to be within the margin for {shown} of {num} models"
            )
    if not lines:
        return "The equivalence test needs two participants or more in an experiment."
    return "; ".join(lines) + " (two one-sided tests at 5 %, studies fixed; `equivalence` has studies random, too)."


def _template(findings: Findings) -> Figure:
    name, title = "template", "Chat template against none, by model"
    frame = _effects(findings, "template")
    if frame.is_empty():
        needs = "No model has the conditions plain and chat: score with --condition plain,chat."
        if len(findings.metrics.tables["template"]):
            needs = no_effect("template_effects")
        return Figure(name, title, missing=needs)
    nll = findings.models.select("model", "condition", "nll_nats", "colour")
    for condition, column in ((PLAIN, "plain_nats"), (CHAT, "chat_nats")):
        of_condition = nll.filter(condition=condition).select("model", pl.col("nll_nats").alias(column))
        frame = frame.join(of_condition, on="model", how="left", maintain_order="left")
    nlls = [alt.Tooltip(f"{column}:Q", format=".3f") for column in ("plain_nats", "chat_nats")]
    row = Row(
        "model",
        "d",
        "effect size d (above 0: the template makes the prediction worse)",
        findings.colour(),
        ["model:N", alt.Tooltip("d:Q", format="+.3f"), *nlls, *Row.tooltip[2:]],
        filters=(),
    )
    return Figure(
        name,
        title,
        f"Cohen's d over responses of `chat` against `plain`, averaged over experiments. {bars_caption(frame)}",
        ("template", "template_effects", "intervals"),
        interval_chart(row),
        {"rows": findings.coloured(frame)},
        ("model",),
    )


def _others(findings: Findings) -> Figure:
    """Conditions against `plain` that have no figure of their own."""
    name, title = "conditions", "Other conditions against plain, by model"
    frame = _effects(findings, OTHERS).filter(~pl.col("condition_a").is_in(_OWN_FIGURES))
    if frame.is_empty():
        needs = "No model has the condition plain and another one beside persona and chat: score with --condition plain,no-history, say."
        return Figure(name, title, missing=needs)
    values = tuple(frame["condition_a"].unique().sort().to_list())
    row = Row(
        "model",
        "d",
        "effect size d (above 0: the condition makes the prediction better)",
        colour("condition_a", values, None),
        ["model:N", "condition_a:N", alt.Tooltip("d:Q", format="+.3f"), *Row.tooltip[2:]],
        offset=("condition_a", *values),
        filters=(),
    )
    return Figure(
        name,
        title,
        f"Cohen's d over responses against `plain`, averaged over experiments. {bars_caption(frame)}",
        (OTHERS, "intervals"),
        interval_chart(row),
        {"rows": frame},
        ("model",),
    )
