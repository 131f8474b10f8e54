"""All metrics of some runs: one pass over the cells, every table from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from psyfast.metrics import agreement, baselines, choice_tables, effect_tables, participant_tables, score_tables
from psyfast.metrics.categories import NO_CATEGORIES, Categories, read_categories
from psyfast.metrics.choices import ChoiceReader
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.contrasts import DISCRETE, PERSONA, PLAIN, POST_TRAINING, Contrast, find_contrasts
from psyfast.metrics.interval_tables import equivalence_rows, interval_rows, resample
from psyfast.metrics.moments import ContrastMoments, contrast_moments, group_moments
from psyfast.metrics.pairs import PairTable, load_pairs
from psyfast.metrics.responses import CellScores, Floats, ResponseIndex, ScoreReader, index_responses
from psyfast.metrics.results import Cell, Part, Results, open_results
from psyfast.metrics.schema import table
from psyfast.metrics.statistics_of_totals import DIFFERENCE, EFFECT, MEAN

Row = dict[str, object]


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
        self.choices = ChoiceReader(index, results)
        self.notes: list[str] = list(results.notes)
        self.baseline_nlls = self._baseline_nlls()
        self.totals: dict[tuple[str, str], Floats] = {}
        self.choice_rows: list[Row] = []
        self.curve_rows: list[Row] = []
        self.agreement_rows: list[Row] = []
        self.baseline_rows: list[Row] = []

    def tables(self) -> dict[str, pl.DataFrame]:
        """Every table."""
        experiments = self._experiments()
        moments = {contrast: self._moments(contrast) for contrast in self.contrasts}
        effects = self._effects(moments)
        intervals, equivalences = self._intervals(moments)
        baselines, of_models = self._baselines()
        pairs = effect_tables.pair_table(effects["pair_effects"], self.contrasts, self.pairs)
        by_category = effect_tables.category_table(self._heat_map_effects(moments), self.categories)
        return {
            "models": score_tables.model_table(
                experiments, table("choices", self.choice_rows), of_models, self.results, self.pairs
            ),
            "choices": table("choices", self.choice_rows),
            "reliability": table("reliability", self.curve_rows),
            "agreement": table("agreement", self.agreement_rows),
            "participants": participant_tables.participant_table(self.index, self.totals),
            "correlations": participant_tables.correlation_table(self.index, self.totals),
            "baselines": baselines,
            "model_baselines": of_models,
            "intervals": intervals,
            "equivalence": equivalences,
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
        """One pass over the cells: whatever needs no second cell."""
        rows: list[Row] = []
        items = agreement.first_items(self.index, _one_cell_a_run(self.results), self.config.min_participants)
        self.notes.append(agreement.per_item_note(items, self.config.min_participants))
        for cell in self.results.cells:
            scores = self.reader.read(*cell.key)
            rows += score_tables.experiment_rows(self.index, cell, scores, self.categories)
            sums_P = self.index.sum_P(np.where(scores.scored_R, scores.nll_R, 0.0))
            self.totals[cell.key] = np.stack([sums_P, self.index.sum_P(scores.scored_R)], axis=1)
            self._compare_with_baselines(cell, scores)
            choices = self.choices.read(cell)
            main, curves = choice_tables.choice_rows(self.index, cell, scores, choices)
            self.choice_rows += main
            self.curve_rows += curves
            scored_items = np.where(scores.scored_R, items, -1)
            self.agreement_rows += agreement.agreement_rows(self.index, cell, choices, scored_items)
        return table("experiments", rows)

    def _baseline_nlls(self) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for cell, part in _one_cell_a_run(self.results):
            sets = self.choices.sets(cell, part)
            for name, nll_R in baselines.baseline_nlls(self.index, cell, part, sets).items():
                known = found.setdefault(name, np.full(self.index.num_responses, np.nan))
                found[name] = np.where(np.isnan(known), nll_R, known)
        if self.config.baseline is not None:
            found[baselines.OWN] = baselines.read_baseline(self.config.baseline, self.index)
            num = int(np.sum(~np.isnan(found[baselines.OWN])))
            self.notes.append(f"baseline: your file predicts {num:,} of {self.index.num_responses:,} responses")
        return {name: np.where(self.reader.left_out_R, np.nan, nll_R) for name, nll_R in found.items()}

    def _compare_with_baselines(self, cell: Cell, scores: CellScores) -> None:
        for name, nll_R in self.baseline_nlls.items():
            self.baseline_rows += score_tables.baseline_rows(self.index, cell, scores, name, nll_R)

    def _baselines(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        alone = [
            row
            for name, nll in self.baseline_nlls.items()
            for row in score_tables.baseline_alone(self.index, name, nll)
        ]
        return table("baselines", alone), table("model_baselines", self.baseline_rows)

    def _intervals(self, moments: Mapping[Contrast, ContrastMoments]) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows: list[Row] = []
        equivalences: list[Row] = []
        for (model, condition), totals_P2 in self.totals.items():
            scores = self.reader.read(model, condition)
            of_cell = group_moments(self.index, scores.nll_R, scores.scored_R)
            names: Row = {"model_a": model, "condition_a": condition}
            with np.errstate(invalid="ignore", divide="ignore"):
                pooled_G = of_cell.sd_G(1) ** 2 / of_cell.num_G
            found = resample(self.index, names, MEAN, totals_P2, pooled_G, self.config)
            rows += interval_rows(found, self.config)
        for contrast, of_contrast in moments.items():
            left_out = self._groups_left_out(self.config.left_out_of_persona) if contrast.kind == PERSONA else ()
            for statistic in (DIFFERENCE, EFFECT):
                pooled_G = of_contrast.pooled_G[statistic.name]
                names = effect_tables.sides(contrast)
                found = resample(self.index, names, statistic, of_contrast.totals_P5, pooled_G, self.config, left_out)
                rows += interval_rows(found, self.config)
                if statistic is EFFECT and contrast.kind == PERSONA:
                    equivalences += equivalence_rows(found, self.config)
        return table("intervals", rows), table("equivalence", equivalences)

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
            effect_tables.add_tests(
                rows[effect_tables.EFFECTS_OF[contrast.kind]], contrast, of_contrast, self.index, self.config
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


def _one_cell_a_run(results: Results) -> list[tuple[Cell, Part]]:
    """For each run the cell that its responses and choice sets are taken from: `plain` where it has one."""
    found: dict[Path, tuple[Cell, Part]] = {}
    for cell in sorted(results.cells, key=lambda cell: cell.condition != PLAIN):
        for part in cell.parts:
            found.setdefault(part.run, (cell, part))
    return list(found.values())
