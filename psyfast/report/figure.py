"""One figure of the report: a chart with its data, or the sentence that says what it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl

from psyfast.report.style import CONFIG, ONE_ROW, STATIC_WIDTH

AnyChart = alt.Chart | alt.LayerChart


@dataclass(frozen=True, eq=False)
class Figure:
    """name: of its files and its place on the page. caption: what it shows, of how many, with which estimand. tables:
    where the numbers are. chart reads its data by name from `data`, the first of which is what the page shows as numbers.

    follows: what a choice on the page changes, a subset of model, condition, experiment, comparison; the chart reads the
    choice as the parameters only_model …, null where nothing is chosen. defaults: what it shows then, of those of
    which it can show one only. picks: what a click on a mark chooses, model or experiment. missing: instead of a chart, one sentence that says what the runs lack.
    """

    name: str
    title: str
    caption: str = ""
    tables: tuple[str, ...] = ()
    chart: AnyChart | None = None
    data: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    follows: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    picks: str = "model"
    missing: str = ""

    def spec(self) -> dict[str, Any]:
        """The chart as a Vega-Lite specification that holds its data."""
        assert self.chart is not None, f"figure {self.name} has no chart"
        found: dict[str, Any] = self.chart.to_dict()
        names = [f"only_{what}" for what in ("model", "condition", "experiment", "comparison")]
        return {
            **found,
            "description": f"{self.title}. {self.caption}".replace("`", ""),
            "autosize": {"type": "fit-x", "contains": "padding"},
            "config": CONFIG,
            "params": [*({"name": name, "value": None} for name in names), *found.get("params", [])],
            "datasets": {ONE_ROW: [{}], **{name: rows(frame) for name, frame in self.data.items()}},
        }

    def static_spec(self) -> dict[str, Any]:
        """The same with a title and a width of its own, for files."""
        shown = [f"{what}: {value}" for what, value in self.defaults.items()]
        title = {"text": self.title, "subtitle": shown, "anchor": "start", "fontSize": 14, "offset": 12}
        sized = {"width": STATIC_WIDTH, "autosize": "pad", "background": "white", "padding": 12}
        return {**self.spec(), **sized, "title": title}


def rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows for JSON, which has neither NaN nor infinity; numbers to 6 digits."""
    return [{name: _plain(value) for name, value in row.items()} for row in frame.to_dicts()]


def _plain(value: object) -> object:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
