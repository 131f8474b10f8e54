"""All metrics of some runs: one pass over the cells, every table from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from psyfast.metrics import effect_tables, score_tables
from psyfast.metrics.categories import NO_CATEGORIES, Categories, read_categories
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.contrasts import DISCRETE, PERSONA, POST_TRAINING, Contrast, find_contrasts
from psyfast.metrics.moments import ContrastMoments, contrast_moments
from psyfast.metrics.pairs import PairTable, load_pairs
from psyfast.metrics.responses import ResponseIndex, ScoreReader, index_responses
from psyfast.metrics.results import Results, open_results
from psyfast.metrics.schema import table


@dataclass(frozen=True, eq=False)
class Metrics:
    """What was computed. tables: by the names of psyfast.metrics.schema.TABLES, every one of them, empty ones too.

    notes: what a reader of the figures has to know, a sentence each.
    """

    config: MetricsConfig
    runs: tuple[Path, ...]
    protocol: str
    lane: str
    tables: Mapping[str, pl.DataFrame]
    notes: tuple[str, ...]


def compute_metrics(runs: Sequence[Path], config: MetricsConfig | None = None) -> Metrics:
    """Compute every table from the results of one or several finished runs.

    Raises RunError for runs that do not belong together, DataError and UsageError for files and choices that cannot be
    meant.
    """
    config = config or MetricsConfig()
    pairs = load_pairs(config.pairs)
    categories = read_categories(config.categories) if config.categories else NO_CATEGORIES
    results = open_results(runs)
    index = index_responses(results, config.group_by)
    work = _Work(config, results, index, pairs, categories)
    tables = {name: table(name) for name in effect_tables.EFFECTS_OF.values()} | work.tables()
    return Metrics(config, tuple(runs), results.protocol, results.lane, tables, tuple(work.notes))


class _Work:
    """The inputs of a computation, and what its one pass over the cells collects."""

    def __init__(
        self, config: MetricsConfig, results: Results, index: ResponseIndex, pairs: PairTable, categories: Categories
    ) -> None:
        self.config, self.results, self.index, self.pairs, self.categories = config, results, index, pairs, categories
        self.contrasts = find_contrasts(results, pairs)
        self.reader = ScoreReader(index, results, left_out=config.left_out)
        self.notes: list[str] = []

    def tables(self) -> dict[str, pl.DataFrame]:
        """Every table."""
        experiments = self._experiments()
        moments = {contrast: self._moments(contrast) for contrast in self.contrasts}
        effects = self._effects(moments)
        pairs = effect_tables.pair_table(effects["pair_effects"], self.contrasts, self.pairs)
        by_category = effect_tables.category_table(self._heat_map_effects(moments), self.categories)
        return {
            "models": score_tables.model_table(experiments, self.results, self.pairs),
            "experiments": experiments,
            "accuracy": score_tables.accuracy_table(experiments, DISCRETE),
            **effects,
            "pairs": pairs,
            "types": effect_tables.type_table(pairs),
            "generations": effect_tables.generation_table(pairs),
            "categories": by_category,
            "category_means": effect_tables.category_mean_table(by_category, pairs),
            **effect_tables.condition_tables(effects),
        }

    def _experiments(self) -> pl.DataFrame:
        rows = [
            row
            for cell in self.results.cells
            for row in score_tables.experiment_rows(self.index, cell, self.reader.read(*cell.key), self.categories)
        ]
        return table("experiments", rows)

    def _moments(self, contrast: Contrast) -> ContrastMoments:
        a, b = self.reader.read(*contrast.a), self.reader.read(*contrast.b)
        return contrast_moments(self.index, a, b, joint_only=not self.config.as_published)

    def _effects(self, moments: Mapping[Contrast, ContrastMoments]) -> dict[str, pl.DataFrame]:
        rows: dict[str, list[dict[str, object]]] = {name: [] for name in effect_tables.EFFECTS_OF.values()}
        for contrast, of_contrast in moments.items():
            is_persona = contrast.kind == PERSONA
            left_out = self._groups_left_out(self.config.left_out_of_persona) if is_persona else ()
            rows[effect_tables.EFFECTS_OF[contrast.kind]] += effect_tables.effect_rows(
                contrast, of_contrast, self.index.groups, 0 if is_persona and self.config.as_published else 1, left_out
            )
        return {name: table(name, of_name) for name, of_name in rows.items()}

    def _heat_map_effects(self, moments: Mapping[Contrast, ContrastMoments]) -> pl.DataFrame:
        """The effects that the category heat map averages: ddof = 0 in the study, as everywhere else in ours."""
        ddof = 0 if self.config.as_published else 1
        rows = [
            row
            for contrast, of_contrast in moments.items()
            if contrast.kind == POST_TRAINING
            for row in effect_tables.effect_rows(contrast, of_contrast, self.index.groups, ddof)
        ]
        return table("pair_effects", rows)

    def _groups_left_out(self, studies: Sequence[str]) -> tuple[int, ...]:
        """Groups all of whose participants are of these studies."""
        of_studies = self.index.participants["study"].is_in(list(studies)).to_numpy()
        kept_G = self.index.group_sums(~of_studies)
        return tuple(idx for idx in range(len(self.index.groups)) if not kept_G[idx])
