"""How often models are right, and whether their probabilities mean what they say."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.fit_figures import NEEDS_OPTIONS
from psyfast.report.style import chosen, colour, highlighted, row_axis

_OF_TOKENS, _OF_OPTIONS = "most probable token (discrete)", "most probable option"
ALL = "all experiments"
_MAX_ROWS = 30_000
"""Rows of reliability curves that the page takes; beyond, experiments have none of their own."""


def accuracy_figures(findings: Findings) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order."""
    return _accuracy(findings), _calibration(findings)


def _accuracy(findings: Findings) -> Figure:
    name, title = "accuracy", "Accuracy, by model"
    discrete = (
        findings.table("accuracy")
        .group_by("model", "condition", maintain_order=True)
        .agg(pl.col("accuracy").mean(), num_experiments=pl.len(), num_responses=pl.col("num_scored").sum())
        .with_columns(measure=pl.lit(_OF_TOKENS))
    )
    choices = (
        findings.table("choices")
        .filter(condition=findings.condition)
        .group_by("model", "condition", maintain_order=True)
        .agg(
            accuracy=pl.col("choice_accuracy").mean(),
            num_experiments=pl.len(),
            num_responses=pl.col("num_responses").sum(),
        )
        .with_columns(measure=pl.lit(_OF_OPTIONS))
    )
    frame = pl.concat([discrete, choices.select(discrete.columns)]).filter(pl.col("accuracy").is_not_null())
    if frame.is_empty():
        needs = f"No model has the condition discrete, and no response has a choice set: score with --condition discrete. {NEEDS_OPTIONS}"
        return Figure(name, title, missing=needs)
    order = findings.models.group_by("model").agg(pl.col("order").min())
    frame = frame.join(order, on="model", how="left", maintain_order="left")
    rows = row_axis("model")
    measures = tuple(m for m in (_OF_TOKENS, _OF_OPTIONS) if m in set(frame["measure"]))
    points = (
        alt.Chart(alt.NamedData("rows"))
        .mark_point(size=80)
        .encode(
            alt.X(
                "accuracy:Q",
                title="share of responses that are what the model holds most probable",
                scale=alt.Scale(zero=False),
                axis=alt.Axis(format="%"),
            ),
            rows["y"],
            colour("measure", measures, None),
            shape=alt.Shape(
                "measure:N", title=None, scale=alt.Scale(domain=list(measures), range=["circle", "square"])
            ),
            opacity=highlighted(),
            tooltip=[
                "model:N",
                "measure:N",
                alt.Tooltip("accuracy:Q", format=".1%"),
                "num_experiments:Q",
                alt.Tooltip("num_responses:Q", format=","),
            ],
        )
    )
    lacks = (
        ""
        if len(discrete)
        else " No model has the condition discrete: the study's accuracy needs --condition discrete."
    )
    return Figure(
        name,
        title,
        "Unweighted mean over experiments. Most probable token: over the whole vocabulary, responses of one letter; most "
        f"probable option: among the choice set, condition {findings.condition}.{lacks}",
        ("accuracy", "choices"),
        alt.layer(points).properties(width="container", height=alt.Step(rows["step"])),
        {"rows": frame},
        ("model",),
    )


def _calibration(findings: Findings) -> Figure:
    name, title = "calibration", "Calibration over options"
    by_experiment = findings.table("reliability")
    if by_experiment.is_empty():
        return Figure(name, title, missing=f"No response has a choice set. {NEEDS_OPTIONS}")
    kept = by_experiment.select("model", "condition", "experiment", "num_responses", "confidence", "accuracy")
    few = len(kept) <= _MAX_ROWS
    frame = pl.concat([_pooled(kept), kept] if few else [_pooled(kept)])
    frame = findings.coloured(findings.with_defaults(frame)).with_columns(
        is_default_experiment=pl.col("experiment") == ALL
    )
    ece = pl.concat(
        [
            findings.table("choices").select("model", "condition", "experiment", "ece"),
            findings.table("models")
            .select("model", "condition", "ece", experiment=pl.lit(ALL))
            .select("model", "condition", "experiment", "ece"),
        ]
    )
    frame = frame.join(ece, on=["model", "condition", "experiment"], how="left", maintain_order="left")
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen("condition")).transform_filter(chosen("experiment"))
    x = alt.X(
        "confidence:Q",
        title="probability of the most probable option",
        axis=alt.Axis(format="%"),
        scale=alt.Scale(zero=False),
    )
    y = alt.Y(
        "accuracy:Q", title="share of responses that are it", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])
    )
    shared = {
        "color": findings.colour(),
        "opacity": highlighted(among=len(findings.results.models)),
        "detail": "model:N",
    }
    lines = base.mark_line(strokeWidth=1.5).encode(x, y, **shared)
    points = base.mark_point(filled=True).encode(
        x,
        y,
        size=alt.Size("num_responses:Q", legend=None, scale=alt.Scale(range=[12, 90])),
        tooltip=[
            "model:N",
            "experiment:N",
            alt.Tooltip("confidence:Q", format=".1%"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("num_responses:Q", format=","),
            alt.Tooltip("ece:Q", title="ECE", format=".3f"),
        ],
        **shared,
    )
    ends = pl.DataFrame({"p": [frame.select(pl.col("confidence").min()).item(), 1.0]})
    diagonal = (
        alt.Chart(alt.NamedData("diagonal"))
        .mark_line(strokeDash=[4, 3], color="#444444", strokeWidth=1)
        .encode(alt.X("p:Q"), alt.Y("p:Q"))
    )
    return Figure(
        name,
        title,
        f"{ALL[0].upper()}{ALL[1:]}: the 15 bins of equal mass of each experiment, gathered in tenths of confidence and weighted by their responses. "
        "On the dashed line, probabilities mean what they say; below it, the model is too sure. "
        + _ece_caption(findings)
        + ("" if few else " Too many for curves by experiment: `reliability` has them."),
        ("reliability", "choices", "models"),
        alt.layer(diagonal, lines, points).properties(width="container", height=360),
        {"rows": frame, "diagonal": ends},
        ("model", "condition", "experiment") if few else ("model", "condition"),
    )


def _pooled(bins: pl.DataFrame) -> pl.DataFrame:
    """The experiments' bins in tenths of confidence, weighted by their responses, as rows of `all experiments`."""
    weight = pl.col("num_responses")
    return (
        bins.with_columns(tenth=(pl.col("confidence") * 10).floor().clip(0, 9))
        .group_by("model", "condition", "tenth", maintain_order=True)
        .agg(
            experiment=pl.lit(ALL),
            num_responses=weight.sum(),
            confidence=(pl.col("confidence") * weight).sum() / weight.sum(),
            accuracy=(pl.col("accuracy") * weight).sum() / weight.sum(),
        )
        .sort("model", "condition", "tenth")
        .select(bins.columns)
    )


def _ece_caption(findings: Findings) -> str:
    shown = findings.models.filter("is_default_condition").filter(pl.col("ece").is_not_null())
    if len(shown) > 8:
        low, high = shown.select(low=pl.col("ece").min(), high=pl.col("ece").max()).row(0)
        return f"ECE (top label, mean over experiments): {low:.3f} to {high:.3f}."
    each = ", ".join(f"{row['model']} {row['ece']:.3f}" for row in shown.to_dicts())
    return f"ECE (top label, mean over experiments): {each}."
