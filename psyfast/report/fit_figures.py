"""How well models predict people: NLL by model, by size, and against predictions without a language model."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.report.figure import Figure
from psyfast.report.findings import UNLISTED, Findings
from psyfast.report.interval_chart import Row, bars_caption, interval_chart, with_view
from psyfast.report.style import chosen, colour, highlighted, row_axis, vertical

_NLL = "NLL, nats a response (lower is better)"


def fit_figures(findings: Findings) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order."""
    return _by_model(findings), _by_size(findings), _against_baselines(findings)


def _by_model(findings: Findings) -> Figure:
    of_mean = findings.intervals("nll_nats", ["model_a", "condition_a"])
    names = {"model_a": "model", "condition_a": "condition"}
    frame = findings.models.join(
        of_mean.drop("estimate", "num_experiments", "num_participants").rename(names),
        on=["model", "condition"],
        how="left",
        maintain_order="left",
    )
    frame = with_view(frame, "nll_nats")
    tooltip = [*Row.tooltip, alt.Tooltip("nll_nats:Q", format=".3f"), alt.Tooltip("num_scored:Q", format=",")]
    chart = interval_chart(Row("model", "nll_nats", _NLL, findings.colour(), tooltip, zero=False))
    num_experiments, num_people, num_scored = frame.filter("is_default_condition").select(pl.col(_COUNTS).max()).row(0)
    return Figure(
        "nll",
        "NLL by model",
        "Unweighted mean over experiments of the mean NLL of their responses; "
        f"{num_experiments} experiments, {num_people:,} participants, {num_scored:,} scored responses. {bars_caption(frame)}",
        ("models", "intervals"),
        chart,
        {"rows": frame},
        ("model", "condition"),
    )


_COUNTS = ("num_experiments", "num_participants", "num_scored")


def _by_size(findings: Findings) -> Figure:
    frame = findings.models.filter(pl.col("size_b").is_not_null()).with_columns(
        pl.col("generation").fill_null(UNLISTED), pl.col("type").fill_null("in no pair")
    )
    name, title = "nll-by-size", "NLL against size, by family and type"
    if frame.is_empty():
        needs = "No model's size is known: list the models, with their sizes, in a TOML file and give it as --pairs."
        return Figure(name, title, missing=needs)
    families = tuple(sorted(frame["generation"].unique().to_list()))
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen("condition"))
    x = alt.X(
        "size_b:Q",
        title="10⁹ parameters (logarithmic)",
        scale=alt.Scale(type="log", nice=False, padding=16),
        axis=alt.Axis(format="~g", grid=False, tickCount=6),
    )
    y = alt.Y("nll_nats:Q", title=_NLL, scale=alt.Scale(zero=False))
    family = colour("generation", families, "family")
    lines = base.mark_line(strokeWidth=1.5).encode(x, y, family, detail="type:N", opacity=highlighted())
    points = base.mark_point(size=90, filled=True).encode(
        x,
        y,
        family,
        shape=alt.Shape("type:N", title="type", scale=alt.Scale(range=_SHAPES)),
        opacity=highlighted(),
        tooltip=["model:N", "generation:N", "type:N", "size_b:Q", alt.Tooltip("nll_nats:Q", format=".3f")],
    )
    unknown = findings.models["model"].n_unique() - frame["model"].n_unique()
    return Figure(
        name,
        title,
        f"{frame['model'].n_unique()} models; lines join those of one family and type."
        + (f" {unknown} of unknown size are not shown." if unknown else ""),
        ("models",),
        alt.layer(lines, points).properties(width="container", height=340),
        {"rows": frame},
        ("model", "condition"),
    )


_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]


def _against_baselines(findings: Findings) -> Figure:
    title = "Against predictions without a language model"
    compared = findings.table("model_baselines")
    if compared.is_empty():
        return Figure("baselines", title, missing=f"No response has a choice set. {NEEDS_OPTIONS}")
    frame = compared.group_by("model", "condition", "baseline", maintain_order=True).agg(
        pl.col("difference_nats").mean(), num_experiments=pl.len(), num_responses=pl.col("num_responses").sum()
    )
    order = findings.models.select("model", "condition", "order", "is_default_condition", "is_default_model")
    frame = frame.join(order, on=["model", "condition"], how="inner", maintain_order="left")
    values = tuple(frame["baseline"].unique(maintain_order=True).to_list())
    rows = row_axis("model")
    points = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter(chosen("condition"))
        .mark_point(size=80)
        .encode(
            alt.X("difference_nats:Q", title="NLL of the model − of the baseline, nats (below 0: the model is better)"),
            rows["y"],
            colour("baseline", values, "baseline"),
            shape=alt.Shape("baseline:N", title="baseline", scale=alt.Scale(domain=list(values), range=_SHAPES[:5])),
            opacity=highlighted(),
            tooltip=[
                "model:N",
                "baseline:N",
                alt.Tooltip("difference_nats:Q", format="+.3f"),
                "num_experiments:Q",
                alt.Tooltip("num_responses:Q", format=","),
            ],
        )
    )
    return Figure(
        "baselines",
        title,
        "Mean over experiments of the difference over the responses that both predict. The baselines know the choice set, "
        "the model does not. A model right of 0 against the Markov chain knows less than the participant's own last choices tell.",
        ("model_baselines",),
        alt.layer(vertical(0), points).properties(width="container", height=alt.Step(rows["step"])),
        {"rows": frame},
        ("model", "condition"),
    )


NEEDS_OPTIONS = "Give the data a field `options`, or score with --options auto."
