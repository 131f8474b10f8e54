"""Does post-training make models less human-like, and does that grow: effects by type, generation and category."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.metrics.effect_tables import SIDES
from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.interval_chart import BARS
from psyfast.report.style import GREY, ONE_ROW, chosen, colour, highlighted, vertical
from psyfast.report.words import counted, no_effect

_D = "effect size d (above 0: post-training made it worse)"
NEEDS_PAIRS = (
    "No base model stands beside a model made of it: score both of a pair (psyfast pairs lists them), or name your own "
    "pairs in a TOML file and give it as --pairs."
)
_MEAN = "Diamonds: unweighted means over pairs"
_LIMITS = ("low", "high", "low_fixed", "high_fixed")


def post_training_figures(findings: Findings) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order."""
    return _by_type(findings), _by_generation(findings), _by_category(findings)


def _pairs(findings: Findings) -> pl.DataFrame:
    """Table `pairs` with the post-trained model as `model`, its label, and what the page chooses by."""
    pairs = findings.table("pairs").filter(pl.col("d").is_not_null())
    frame = pairs.with_columns(model=pl.col("model_b"), condition=pl.col("condition_a"))
    return findings.with_defaults(frame).with_columns(pl.col("generation").fill_null("unknown"))


def _needs(findings: Findings) -> str:
    """What there is instead of pairs that have an effect."""
    return NEEDS_PAIRS if findings.metrics.tables["pairs"].is_empty() else no_effect("pair_effects")


def _means(findings: Findings, table: str) -> pl.DataFrame:
    """Means over pairs; the limits of their intervals are null where the table has none."""
    frame = findings.table(table).filter(pl.col("d").is_not_null())
    lacking = [name for name in _LIMITS if name not in frame.columns]
    frame = frame.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in lacking)
    return frame.with_columns(is_default_condition=pl.col("condition") == findings.condition)


def _mean_caption(means: pl.DataFrame) -> str:
    if means["low"].is_null().all():
        return f"{_MEAN}."
    return f"{_MEAN}. {BARS}"


def _by_type(findings: Findings) -> Figure:
    name, title = "effect-by-type", "Effect of post-training, by type"
    pairs, means = _pairs(findings), _means(findings, "types")
    if pairs.is_empty():
        return Figure(name, title, missing=_needs(findings))
    families = tuple(pairs["generation"].unique().sort().to_list())
    points = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter(chosen("condition"))
        .mark_point(size=70, opacity=0.75)
        .encode(
            alt.X("d:Q", title=_D),
            alt.Y("type:N", title=None, axis=alt.Axis(grid=True)),
            colour("generation", families, "generation of the base"),
            opacity=highlighted("model_a", "model_b"),
            tooltip=["model_a:N", "model_b:N", "type:N", alt.Tooltip("d:Q", format="+.3f"), "num_experiments:Q"],
        )
    )
    num = pairs.filter("is_default_condition").height
    return Figure(
        name,
        title,
        f"Cohen's d over responses, averaged over the experiments of a pair; {counted(num, 'pair')}, a point each. {_mean_caption(means)} "
        "Pairs that stand apart from the study's types enter no mean.",
        ("pairs", "types", "pair_effects"),
        alt.layer(vertical(0), points, *_mean_marks(means, "d:Q", "type:N")).properties(
            width="container", height=alt.Step(44)
        ),
        {"rows": pairs, "means": means},
        ("model", "condition"),
    )


def _mean_marks(means: pl.DataFrame, x: str, y: str) -> list[alt.Chart]:
    base = alt.Chart(alt.NamedData("means")).transform_filter(chosen("condition"))
    diamonds = base.mark_point(shape="diamond", size=160, filled=True, color="black", stroke="white").encode(
        alt.X(x), alt.Y(y), tooltip=[y, "condition:N", "num_pairs:Q", alt.Tooltip("d:Q", format="+.3f")]
    )
    bars = []
    for low, high, width in (("low_fixed", "high_fixed", 5), ("low", "high", 1.2)):
        if means[low].is_not_null().any():
            bar = base.mark_rule(color="#222222" if width < 2 else "#8a8a8a", strokeWidth=width)
            ends = {"y": f"{low}:Q", "y2": f"{high}:Q"} if y == "d:Q" else {"x": f"{low}:Q", "x2": f"{high}:Q"}
            bars.append(bar.encode(alt.X(x) if y == "d:Q" else alt.Y(y), **ends))
    return [*bars, diamonds]


def _by_generation(findings: Findings) -> Figure:
    name, title = "generation-trend", "Effect of post-training, by generation"
    pairs, means = _pairs(findings).filter("in_trend"), _means(findings, "generations")
    if pairs.is_empty():
        needs = "No pair of the trend over generations (Qwen2, Qwen2.5, Qwen3, Qwen3.5 in the study) is there: score some, or list your own under [trend] of a TOML file for --pairs."
        return Figure(name, title, missing=needs)
    x = alt.X("generation:N", title="generation", axis=alt.Axis(labelAngle=0))
    points = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter(chosen("condition"))
        .mark_point(size=60, color=GREY)
        .encode(
            x,
            alt.Y("d:Q", title="effect size d (above 0: worse)"),
            opacity=highlighted("model_a", "model_b"),
            tooltip=["model_a:N", "model_b:N", "base_size_b:Q", alt.Tooltip("d:Q", format="+.3f")],
        )
    )
    line = (
        alt.Chart(alt.NamedData("means"))
        .transform_filter(chosen("condition"))
        .mark_line(color="black", strokeWidth=1.5)
        .encode(x, alt.Y("d:Q"))
    )
    zero = alt.Chart(alt.NamedData(ONE_ROW)).mark_rule(strokeDash=[4, 3], color="#444444").encode(y=alt.datum(0))
    num = pairs.filter("is_default_condition").height
    return Figure(
        name,
        title,
        f"{counted(num, 'pair')}, a point each: every size of a generation that the trend takes. {_mean_caption(means)}",
        ("pairs", "generations"),
        alt.layer(zero, points, line, *_mean_marks(means, "generation:N", "d:Q")).properties(
            width="container", height=300
        ),
        {"rows": pairs, "means": means},
        ("model", "condition"),
    )


def _by_category(findings: Findings) -> Figure:
    name, title = "categories", "Effect of post-training, by category of experiment"
    of_pairs, means = findings.table("categories"), _means(findings, "category_means")
    if _pairs(findings).is_empty():
        return Figure(name, title, missing=_needs(findings))
    if of_pairs.is_empty():
        needs = "No categories are known: give a CSV of experiments and their categories as --categories."
        return Figure(name, title, missing=needs)
    pairs = _pairs(findings).select(*SIDES, "type", "is_default_condition")
    frame = of_pairs.join(pairs, on=SIDES, how="inner", maintain_order="left").rename({"condition_a": "condition"})
    frame = frame.with_columns(model=pl.col("model_b"), pair=pl.col("model_b"), order=pl.lit(0))
    mean_rows = means.select("category", "condition", "d", "is_default_condition").with_columns(
        pair=pl.lit("mean over pairs"), order=pl.lit(1), model=pl.lit(None, dtype=pl.String)
    )
    frame = pl.concat([frame, mean_rows], how="diagonal").filter(pl.col("d").is_not_null())
    largest = max(0.05, float(frame["d"].abs().max() or 0))  # type: ignore[arg-type]
    base = (
        alt.Chart(alt.NamedData("rows"))
        .transform_filter(chosen("condition"))
        .encode(
            alt.X("category:N", title=None, axis=alt.Axis(labelAngle=-40, orient="bottom")),
            alt.Y("pair:N", title=None, sort=alt.EncodingSortField("order", op="min")),
        )
    )
    tiles = base.mark_rect().encode(
        alt.Color(
            "d:Q",
            title="d (blue: better, orange: worse)",
            scale=alt.Scale(scheme="blueorange", domain=[-largest, largest], domainMid=0),
        ),
        opacity=highlighted("model_a", "model_b", "pair"),
        tooltip=["pair:N", "category:N", alt.Tooltip("d:Q", format="+.3f"), "num_experiments:Q"],
    )
    fits = f"width > {34 * frame['category'].n_unique()}"
    numbers = base.mark_text(fontSize=10).encode(
        opacity=alt.condition(fits, alt.value(1), alt.value(0)),
        text=alt.Text("d:Q", format="+.2f"),
        color=alt.condition(f"abs(datum.d) > {0.75 * largest}", alt.value("white"), alt.value("black")),
    )
    return Figure(
        name,
        title,
        f"Mean d over the experiments of a category, by post-trained model; {frame['category'].n_unique()} categories. "
        "An experiment of several categories counts in each.",
        ("categories", "category_means"),
        alt.layer(tiles, numbers).properties(width="container", height=alt.Step(22)),
        {"rows": frame},
        ("model", "condition"),
    )
