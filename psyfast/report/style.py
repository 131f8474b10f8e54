"""How charts look: colours that the colour-blind can tell apart, sizes, and the parts that several charts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

# Okabe & Ito 2008, its yellow left out (too pale for lines), then three of Tol's muted ones.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288")
GREY = "#6b6b6b"
FAINT = 0.18
MAX_MODEL_COLOURS = 8
"""Models up to which each has a colour of its own."""
STATIC_WIDTH = 640
"""Pixels of a chart's width in files; on the page it is that of its place."""

CONFIG: dict[str, Any] = {
    "font": "Arial, Helvetica, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 220,
        "gridColor": "#e4e4e4",
        "domain": False,
        "tickColor": "#bbbbbb",
        "labelColor": "#222222",
        "titleColor": "#222222",
        "labelSeparation": 8,
    },
    "axisX": {"labelOverlap": False},
    "axisY": {"labelOverlap": False},
    "axisXQuantitative": {"tickCount": 7, "labelOverlap": True},
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "columns": 3,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 190,
        "symbolLimit": 40,
        "symbolStrokeWidth": 2,
    },
    "point": {"filled": True, "size": 60},
    "line": {"strokeWidth": 2},
}


def highlighted(*columns: str, among: int = 1) -> Any:
    """Opacity: full where the row is of the model chosen, faint where it is not; less than full of many in one place.

    among: how many models may lie over one another where nothing is chosen.
    """
    mine = " || ".join(f"datum.{column} === only_model" for column in columns or ("model",))
    none = 1.0 if among <= MAX_MODEL_COLOURS else 0.6
    return (
        alt.when("only_model === null")
        .then(alt.value(none))
        .when(mine)
        .then(alt.value(1.0))
        .otherwise(alt.value(FAINT))
    )


def chosen(what: str) -> str:
    """Filter: rows of what is chosen, or the default ones (column is_default_…)."""
    return f"only_{what} === null ? datum.is_default_{what} : datum.{what} === only_{what}"


def colour(column: str, values: Sequence[str], title: str | None = None) -> alt.Color:
    """One colour a value, in the order given; those beyond the palette are grey."""
    return alt.Color(f"{column}:N", title=title, scale=colour_scale(values))


def colour_scale(values: Sequence[str]) -> alt.Scale:
    """The scale of `colour`."""
    colours = [*PALETTE[: len(values)], *([GREY] * (len(values) - len(PALETTE)))]
    return alt.Scale(domain=list(values), range=colours)


def row_axis(column: str, *, step: int = 24) -> dict[str, Any]:
    """The encoding of one row a name, in the order of the column `order`."""
    return {
        "y": alt.Y(f"{column}:N", title=None, sort=alt.EncodingSortField("order", op="min"), axis=alt.Axis(grid=True)),
        "step": step,
    }


ONE_ROW = "one"
"""Data of one row, which every figure has: for marks that stand once."""


def vertical(value: float) -> alt.Chart:
    """A dashed line at a value of the x axis."""
    base = alt.Chart(alt.NamedData(ONE_ROW)).mark_rule(strokeDash=[4, 3], color="#444444")
    line: alt.Chart = base.encode(x=alt.datum(value))
    return line
