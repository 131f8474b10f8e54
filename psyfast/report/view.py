"""What part of an axis is shown, where two or three participants make an interval that dwarfs every other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from psyfast.report.style import GREY

CUT = "A triangle ends a bar that goes on beyond the axis."


def within_view(
    frame: pl.DataFrame,
    value: str,
    bars: Sequence[tuple[str, str]],
    by: Sequence[str] = (),
    at_least: tuple[float, float] | None = None,
) -> pl.DataFrame:
    """The frame with LOW_shown and HIGH_shown, the ends of each bar as far as they are in view, and cut_low, cut_high:
    where one is cut (null where none is).

    By group of `by`, the view reaches beyond the points by their range, or by six times the half-width that a quarter of
    the rows' shorter bars stay below, whichever is more. at_least: what is in view in any case.
    """
    half = pl.min_horizontal(*((pl.col(high) - pl.col(low)) / 2 for low, high in bars))
    lowest, highest = pl.col(value).min(), pl.col(value).max()
    room = pl.max_horizontal(highest - lowest, 6 * half.quantile(0.25))
    group: list[str | pl.Expr] = [*by] or [pl.lit(0)]
    view_low, view_high = (lowest - room).over(group), (highest + room).over(group)
    if at_least is not None:
        view_low, view_high = pl.min_horizontal(view_low, at_least[0]), pl.max_horizontal(view_high, at_least[1])
    is_cut_low = pl.any_horizontal(*(pl.col(low) < view_low for low, _ in bars))
    is_cut_high = pl.any_horizontal(*(pl.col(high) > view_high for _, high in bars))
    return frame.with_columns(
        *(_between(end, view_low, view_high).alias(f"{end}_shown") for bar in bars for end in bar),
        cut_low=pl.when(is_cut_low).then(view_low),
        cut_high=pl.when(is_cut_high).then(view_high),
    )


def _between(end: str, view_low: pl.Expr, view_high: pl.Expr) -> pl.Expr:
    return pl.when(pl.col(end).is_not_null()).then(pl.min_horizontal(pl.max_horizontal(end, view_low), view_high))


def caption(frame: pl.DataFrame) -> str:
    """The sentence on triangles, where there are some."""
    return CUT if len(frame.filter(pl.col("cut_low").is_not_null() | pl.col("cut_high").is_not_null())) else ""


def triangles(base: alt.Chart, **shared: Any) -> list[alt.Chart]:
    """The ends of bars that are cut, pointing to where they go on."""
    return [
        base.transform_filter(f"isValid(datum.{end})")
        .mark_point(shape=shape, filled=True, size=50)
        .encode(x=f"{end}:Q", **{**shared, "color": alt.value(GREY)})
        .properties(name=end)
        for end, shape in (("cut_low", "triangle-left"), ("cut_high", "triangle-right"))
    ]
