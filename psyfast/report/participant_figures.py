"""Who is predicted badly: the spread of participants within each experiment."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.style import chosen
from psyfast.report.words import counted

NUM_WORST = 10
_QUANTILES = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
_CELL = ["model", "condition", "experiment"]


def participant_figures(findings: Findings) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order."""
    return _spread(findings), _worst(findings)


def _spread(findings: Findings) -> Figure:
    people = findings.table("participants").filter(pl.col("nll_nats").is_finite())
    spread = people.group_by(_CELL, maintain_order=True).agg(
        *(pl.col("nll_nats").quantile(q, "linear").alias(name) for name, q in _QUANTILES.items()),
        num_participants=pl.len(),
    )
    spread = findings.with_defaults(spread)
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen("model")).transform_filter(chosen("condition"))
    title = "NLL, nats a response: mean of each participant"
    x = alt.Scale(zero=False)
    shared = {
        "y": alt.Y("experiment:N", title=None, sort=alt.EncodingSortField("p50", op="min", order="descending")),
        "opacity": alt.condition(
            "only_experiment === null || datum.experiment === only_experiment", alt.value(1.0), alt.value(0.2)
        ),
        "tooltip": [
            "model:N",
            "experiment:N",
            "num_participants:Q",
            *(
                alt.Tooltip(f"{name}:Q", title=f"{q:.0%} of participants below", format=".3f")
                for name, q in _QUANTILES.items()
            ),
        ],
    }
    whiskers = base.mark_rule(strokeWidth=1.5, color="#0072B2").encode(
        x=alt.X("p05:Q", title=title, scale=x), x2="p95:Q", **shared
    )
    box = base.mark_bar(height=9, color="#0072B2").encode(x=alt.X("p25:Q", title=title, scale=x), x2="p75:Q", **shared)
    middle = base.mark_tick(thickness=2, height=13, color="black").encode(
        x=alt.X("p50:Q", title=title, scale=x), **shared
    )
    num = people.filter(model=findings.default_model, condition=findings.condition).height
    return Figure(
        "participants",
        "Who is predicted badly: participants by experiment",
        f"{num:,} participants; one model at a time. Black: median; bar: middle half; line: middle 90 %. {_agreement(findings)}",
        ("participants", "correlations"),
        alt.layer(whiskers, box, middle).properties(width="container", height=alt.Step(20)),
        {"rows": spread},
        ("model", "condition", "experiment"),
        {"model": findings.default_model},
        picks="experiment",
    )


def _agreement(findings: Findings) -> str:
    """How far models agree on whom they predict badly, as a sentence."""
    found = findings.table("correlations").filter(pl.col("spearman").is_not_null(), condition=findings.condition)
    if found.is_empty():
        return ""
    median = found.select(pl.col("spearman").median()).item()
    return (
        "Whom one model predicts badly, another does, too, where this is near 1: Spearman's correlation within experiments, "
        f"median over {counted(len(found), 'pair')} of models: {median:.2f}."
    )


def _worst(findings: Findings) -> Figure:
    people = findings.table("participants").filter(pl.col("nll_nats").is_finite())
    above = people.with_columns(
        above_nats=pl.col("nll_nats") - pl.col("nll_nats").mean().over(_CELL), in_experiment=pl.len().over(_CELL)
    ).filter(pl.col("in_experiment") >= 2, pl.col("above_nats") > 0)
    name, title = "worst-participants", "The participants predicted worst"
    if above.is_empty():
        return Figure(
            name, title, missing="No experiment has two participants or more with scored responses and different NLLs."
        )
    worst = above.filter(pl.col("above_nats").rank("ordinal", descending=True).over("model", "condition") <= NUM_WORST)
    worst = findings.with_defaults(worst).with_columns(
        who=pl.concat_str("participant", "experiment", separator=" · "), order=-pl.col("above_nats")
    )
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen("model")).transform_filter(chosen("condition"))
    bars = base.mark_bar(color="#D55E00", height=10).encode(
        alt.X("above_nats:Q", title="NLL above the mean of the experiment's participants, nats a response"),
        alt.Y("who:N", title=None, sort=alt.EncodingSortField("order", op="min")),
        tooltip=[
            "model:N",
            "participant:N",
            "experiment:N",
            alt.Tooltip("nll_nats:Q", format=".3f"),
            alt.Tooltip("above_nats:Q", format="+.3f"),
            "num_scored:Q",
        ],
    )
    return Figure(
        name,
        title,
        f"The {NUM_WORST} participants whose mean NLL lies farthest above that of their experiment; one model at a time.",
        ("participants",),
        alt.layer(bars).properties(width="container", height=alt.Step(22)),
        {"rows": worst},
        ("model", "condition"),
        {"model": findings.default_model},
        picks="experiment",
    )
