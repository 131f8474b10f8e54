"""Tables of means of d with their intervals: by pair, type, generation, category and condition (PROTOCOL 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from psyfast.metrics import effect_tables
from psyfast.metrics.categories import Categories
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.contrasts import POST_TRAINING, Contrast
from psyfast.metrics.effect_tables import SIDES, sides
from psyfast.metrics.interval_tables import limits_of
from psyfast.metrics.joint_intervals import MeanOverPairs, joint_intervals
from psyfast.metrics.moments import ContrastMoments
from psyfast.metrics.pairs import PairTable
from psyfast.metrics.resampling import Resampling
from psyfast.metrics.responses import ResponseIndex
from psyfast.metrics.schema import LIMITS, table
from psyfast.metrics.statistics_of_totals import EFFECT, EFFECT_DDOF_0, Statistic

Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class MeansOfContrasts:
    """Builds the tables of means."""

    index: ResponseIndex
    config: MetricsConfig
    pairs: PairTable
    categories: Categories
    contrasts: Sequence[Contrast]
    moments: Mapping[Contrast, ContrastMoments]

    def tables(
        self, effects: Mapping[str, pl.DataFrame], heat_map: pl.DataFrame, resampled: Resampling
    ) -> dict[str, pl.DataFrame]:
        """Tables `pairs`, `types`, `generations`, `categories`, `category_means`, `persona`, `template`, `conditions`."""
        pairs = effect_tables.pair_table(effects["pair_effects"], self.contrasts, self.pairs)
        by_category = effect_tables.category_table(heat_map, self.categories)
        means = {
            "types": effect_tables.type_table(pairs),
            "generations": effect_tables.generation_table(pairs),
            "category_means": effect_tables.category_mean_table(by_category, pairs),
        }
        by_kind = {
            name: self._with_limits(name, frame, resampled, kind)
            for kind, name in effect_tables.MEANS_OF.items()
            for frame in (effect_tables.condition_tables(effects)[name],)
        }
        by_name = [{**sides(c), "category": name, **row} for (c, name), row in resampled.by_category.items()]
        return {
            "pairs": self._with_limits("pairs", pairs, resampled, POST_TRAINING),
            "categories": joined("categories", by_category, by_name, [*SIDES, "category"]),
            **self._means_over_pairs(means, pairs),
            **by_kind,
        }

    def _with_limits(self, name: str, frame: pl.DataFrame, resampled: Resampling, kind: str) -> pl.DataFrame:
        rows = [{**sides(c), **row} for c, row in resampled.means.items() if c.kind == kind]
        return joined(name, frame, rows, SIDES)

    def _means_over_pairs(self, means: Mapping[str, pl.DataFrame], pairs: pl.DataFrame) -> dict[str, pl.DataFrame]:
        rows: dict[str, list[Row]] = {name: [] for name in means}
        for condition in pairs["condition_a"].unique(maintain_order=True):
            mine = [c for c in self.contrasts if c.kind == POST_TRAINING and c.a[1] == condition]
            heat_map = EFFECT_DDOF_0 if self.config.as_published else EFFECT
            for statistic, names in ((EFFECT, ("types", "generations")), (heat_map, ("category_means",))):
                asked = [
                    (name, {key: row[key], "condition": condition}, self._mean(name, row[key], mine))
                    for name, key in ((name, means[name].columns[0]) for name in names)
                    for row in means[name].filter(condition=condition).iter_rows(named=True)
                ]
                for (name, keys, _), row in zip(
                    asked, self._joint(mine, [m for *_, m in asked], statistic), strict=True
                ):
                    rows[name].append({**keys, **row})
        return {name: joined(name, frame, rows[name], frame.columns[:2]) for name, frame in means.items()}

    def _joint(self, contrasts: Sequence[Contrast], means: Sequence[MeanOverPairs], statistic: Statistic) -> list[Row]:
        if not means:
            return []
        totals = [self.moments[contrast].totals_P6 for contrast in contrasts]
        found = joint_intervals(self.index, totals, statistic, means, self.config)
        return [limits_of(random, fixed) for fixed, random in found]

    def _mean(self, table_name: str, key: str, contrasts: Sequence[Contrast]) -> MeanOverPairs:
        """Which pairs and experiments the row of that name averages."""
        groups = list(range(len(self.index.groups)))
        chosen = [number for number, contrast in enumerate(contrasts) if self._is_in(table_name, key, contrast)]
        if table_name == "category_means":
            groups = [g for g in groups if key in self.categories.of(self.index.groups[g])]
        return MeanOverPairs(tuple(chosen), tuple(groups))

    def _is_in(self, table_name: str, key: str, contrast: Contrast) -> bool:
        pair = contrast.pair
        if pair is None or pair.apart:
            return False
        if table_name == "types":
            return pair.type == key
        if table_name == "generations":
            return self.pairs.in_trend(pair) and self.pairs.generation_of(pair) == key
        return True


def joined(name: str, frame: pl.DataFrame, rows: Sequence[Row], keys: Sequence[str]) -> pl.DataFrame:
    """The table with the columns of limits; null where no row gives them."""
    schema = {**{key: pl.String() for key in keys}, **LIMITS}
    found = pl.DataFrame(list(rows), schema=schema, orient="row")
    return table(name, frame.drop(list(LIMITS)).join(found, on=list(keys), how="left", maintain_order="left"))
