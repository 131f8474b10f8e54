"""One row a name, a point with two intervals: the shape of most figures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import altair as alt
import polars as pl

from psyfast.report.style import GREY, chosen, highlighted, row_axis, vertical
from psyfast.report.view import caption, triangles, within_view

BARS = (
    "Thick bars: 95 % intervals for these experiments (studies fixed, participants resampled); thin bars: for experiments "
    "like these (studies random, both resampled)."
)


@dataclass(frozen=True)
class Row:
    """name, value: columns of a row's name and its point; title: of the x axis. zero: a line at 0, which is on the axis.

    The data come from `with_view`, and have order, condition, is_default_condition besides.
    offset: a column whose values stand below one another within a row. filters: of the rows that are shown.
    """

    tooltip: ClassVar[tuple[Any, ...]] = (
        "model:N",
        "condition:N",
        alt.Tooltip("fixed_low:Q", title="studies fixed: low", format=".3f"),
        alt.Tooltip("fixed_high:Q", title="studies fixed: high", format=".3f"),
        alt.Tooltip("random_low:Q", title="studies random: low", format=".3f"),
        alt.Tooltip("random_high:Q", title="studies random: high", format=".3f"),
        "num_experiments:Q",
        alt.Tooltip("num_participants:Q", format=","),
    )

    name: str
    value: str
    title: str
    colour: alt.Color | None
    details: Sequence[Any] = field(default=())
    zero: bool = True
    offset: Sequence[str] = ()
    filters: Sequence[str] = (chosen("condition"),)


def with_view(frame: pl.DataFrame, value: str, at_least: tuple[float, float] | None = None) -> pl.DataFrame:
    """A frame with fixed_low, fixed_high, random_low, random_high, ready for the chart. at_least: as for `within_view`."""
    bars = [("fixed_low", "fixed_high"), ("random_low", "random_high")]
    return within_view(frame, value, bars, at_least=at_least)


def bars_caption(frame: pl.DataFrame) -> str:
    """What the bars of a frame `with_view` are."""
    return f"{BARS} {caption(frame)}".strip()


def interval_chart(row: Row, *beside: alt.Chart) -> alt.LayerChart:
    """The chart; `beside` are layers below it."""
    base = alt.Chart(alt.NamedData("rows"))
    for condition in row.filters:
        base = base.transform_filter(condition)
    axis = row_axis(row.name)
    shared: dict[str, Any] = {"y": axis["y"], "color": row.colour or alt.value(GREY), "opacity": highlighted()}
    if row.offset:
        shared["yOffset"] = alt.YOffset(f"{row.offset[0]}:N", sort=list(row.offset[1:]))
    x: dict[str, Any] = {"title": row.title, "scale": alt.Scale(zero=row.zero)}
    thin = base.mark_rule(strokeWidth=1.2).encode(
        x=alt.X("random_low_shown:Q", **x), x2="random_high_shown:Q", **{**shared, "color": alt.value("#222222")}
    )
    thick = base.mark_rule(strokeWidth=5).encode(x=alt.X("fixed_low_shown:Q", **x), x2="fixed_high_shown:Q", **shared)
    points = base.mark_point(size=70, filled=True, stroke="white", strokeWidth=1).encode(
        x=alt.X(f"{row.value}:Q", **x), tooltip=list(row.details), **shared
    )
    zero = (vertical(0),) if row.zero else ()
    step = 13 if len(row.offset) > 2 else axis["step"]  # of each offset, where there are some
    chart: alt.LayerChart = alt.layer(*beside, *zero, thick, thin, *triangles(base, **shared), points).properties(
        width="container", height=alt.Step(step)
    )
    return chart
