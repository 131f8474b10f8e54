"""All resampling by cell and by contrast: tables `intervals` and `equivalence`, and the samples that means are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from psyfast.metrics.categories import Categories
from psyfast.metrics.cell_figures import CellFigures
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.contrasts import CONDITION, PERSONA, POST_TRAINING, Contrast
from psyfast.metrics.interval_tables import (
    Resampled,
    Subject,
    equivalence_rows,
    interval_rows,
    limits,
    resample,
)
from psyfast.metrics.responses import ResponseIndex
from psyfast.metrics.schema import table
from psyfast.metrics.statistics_of_totals import EFFECT, EFFECT_DDOF_0, MEAN, Statistic

Row = dict[str, object]


@dataclass(eq=False)
class Resampling:
    """intervals, equivalences: the tables. means: each contrast's columns low to high_fixed; by_category: the same over the
    experiments of each category, of pairs.
    """

    intervals: pl.DataFrame = field(default_factory=lambda: table("intervals"))
    equivalences: pl.DataFrame = field(default_factory=lambda: table("equivalence"))
    means: dict[Contrast, Row] = field(default_factory=dict)
    by_category: dict[tuple[Contrast, str], Row] = field(default_factory=dict)


def resample_everything(
    index: ResponseIndex,
    cells: Sequence[CellFigures],
    contrasts: Sequence[tuple[Contrast, Subject]],
    categories: Categories,
    config: MetricsConfig,
) -> Resampling:
    """Resample every cell and contrast, the same participants and studies for all."""
    found = Resampling()
    rows: list[Row] = []
    subjects = [subject for cell in cells for subject in cell.subjects()]
    for (resampled,) in resample(index, subjects, config):
        rows += interval_rows(resampled, config, by_experiment=resampled.statistic.name == MEAN.name)
    named = {(c.a, c.b) for c, _ in contrasts if c.kind != CONDITION}
    equivalences: list[Row] = []
    for (contrast, _), of_contrast in zip(
        contrasts, resample(index, [subject for _, subject in contrasts], config), strict=True
    ):
        by_statistic = {of.statistic: of for of in of_contrast}
        if contrast.kind != CONDITION or (contrast.a, contrast.b) not in named:
            for of in of_contrast[:2]:
                rows += interval_rows(of, config)
        if contrast.kind == PERSONA:
            equivalences += equivalence_rows(by_statistic[EFFECT], config)
        _add_means(found, contrast, by_statistic, categories, config)
    found.intervals, found.equivalences = table("intervals", rows), table("equivalence", equivalences)
    return found


def _add_means(
    found: Resampling,
    contrast: Contrast,
    by_statistic: Mapping[Statistic, Resampled],
    categories: Categories,
    config: MetricsConfig,
) -> None:
    """Limits of the contrast's mean d over experiments, with the ddof of the table that shows it."""
    published = by_statistic.get(EFFECT_DDOF_0, by_statistic[EFFECT])
    of_mean = published if contrast.kind == PERSONA else by_statistic[EFFECT]
    found.means[contrast] = limits(of_mean.samples, config)
    if contrast.kind != POST_TRAINING or not categories.names:
        return
    for name in dict.fromkeys(name for group in published.groups for name in categories.of(group)):
        mine = [
            sample
            for group, sample in zip(published.groups, published.samples, strict=True)
            if name in categories.of(group)
        ]
        found.by_category[contrast, name] = limits(mine, config)
