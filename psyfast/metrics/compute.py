"""All metrics of some runs: one pass over the cells, every table from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from psyfast.metrics import agreement, baselines, effect_tables, participant_tables, score_tables
from psyfast.metrics.categories import NO_CATEGORIES, Categories, read_categories
from psyfast.metrics.cell_figures import CellFigures, Sources, cell_figures
from psyfast.metrics.choices import ChoiceReader
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.contrasts import DISCRETE, PERSONA, PLAIN, POST_TRAINING, Contrast, find_contrasts
from psyfast.metrics.in_order import in_order
from psyfast.metrics.interval_tables import Subject
from psyfast.metrics.mean_tables import MeansOfContrasts
from psyfast.metrics.moments import ContrastMoments, contrast_moments
from psyfast.metrics.pairs import PairTable, load_pairs
from psyfast.metrics.resampling import resample_everything
from psyfast.metrics.responses import Floats, ResponseIndex, index_responses
from psyfast.metrics.results import Cell, Part, Results, open_results
from psyfast.metrics.schema import table
from psyfast.metrics.scores import ScoreReader
from psyfast.metrics.statistics_of_totals import DIFFERENCE, EFFECT, EFFECT_DDOF_0, MEAN

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
        self.choices = ChoiceReader(self.reader.numbers)
        self.notes: list[str] = list(results.notes)
        self.figures: dict[tuple[str, str], CellFigures] = {}
        self.moments: dict[Contrast, ContrastMoments] = {}

    def tables(self) -> dict[str, pl.DataFrame]:
        """Every table."""
        self._read_cells()
        cells = [self.figures[cell.key] for cell in self.results.cells]
        totals = {of.cell.key: of.totals[MEAN.name] for of in cells}
        experiments = table("experiments", [row for of in cells for row in of.experiments])
        choices = table("choices", [row for of in cells for row in of.choices])
        of_models = table("model_baselines", [row for of in cells for row in of.baselines])
        effects = {name: table(name, rows) for name, rows in self._effects().items()}
        resampled = resample_everything(self.index, cells, self._contrast_subjects(), self.categories, self.config)
        means = MeansOfContrasts(self.index, self.config, self.pairs, self.categories, self.contrasts, self.moments)
        return {
            "models": score_tables.model_table(
                experiments, choices, of_models, resampled.intervals, self.results, self.pairs
            ),
            "choices": choices,
            "reliability": table("reliability", [row for of in cells for row in of.curves]),
            "agreement": table("agreement", [row for of in cells for row in of.agreement]),
            "participants": participant_tables.participant_table(self.index, totals),
            "correlations": participant_tables.correlation_table(self.index, totals),
            "baselines": table("baselines", self.baselines_alone),
            "model_baselines": of_models,
            "intervals": resampled.intervals,
            "equivalence": resampled.equivalences,
            "experiments": experiments,
            "accuracy": score_tables.accuracy_table(experiments, DISCRETE),
            **effects,
            **means.tables(effects, self._heat_map_effects(), resampled),
        }

    def _read_cells(self) -> None:
        """Read every cell once, two at a time, and compute a contrast as soon as both of its cells were read."""
        baseline_nlls = self._baseline_nlls()
        self.baselines_alone = [
            row for name, nll in baseline_nlls.items() for row in score_tables.baseline_alone(self.index, name, nll)
        ]
        items = agreement.first_items(self.index, _one_cell_a_run(self.results), self.config.min_participants)
        self.notes.append(agreement.per_item_note(items, self.config.min_participants))
        sources = Sources(self.index, self.reader, self.choices, items, baseline_nlls, self.categories)
        waiting = list(self.contrasts)
        for figures in in_order(lambda cell: cell_figures(sources, cell), self._cells_by_contrast()):
            self.figures[figures.cell.key] = figures
            ready = [contrast for contrast in waiting if {contrast.a, contrast.b} <= self.figures.keys()]
            waiting = [contrast for contrast in waiting if contrast not in ready]
            for contrast in ready:
                self.moments[contrast] = self._moments(contrast)

    def _cells_by_contrast(self) -> list[Cell]:
        """Cells that are held against each other one after another, so that they are in memory together."""
        keys = [key for contrast in self.contrasts for key in (contrast.a, contrast.b)]
        cells = {cell.key: cell for cell in self.results.cells}
        return [cells[key] for key in dict.fromkeys([*keys, *cells])]

    def _moments(self, contrast: Contrast) -> ContrastMoments:
        a, b = self.reader.read(*contrast.a), self.reader.read(*contrast.b)
        return contrast_moments(self.index, a, b, joint_only=not self.config.as_published)

    def _baseline_nlls(self) -> dict[str, Floats]:
        found: dict[str, Floats] = {}
        for cell, part in _one_cell_a_run(self.results):
            sets = self.choices.sets(cell, part)
            for name, nll_R in baselines.baseline_nlls(self.reader.numbers, self.index, cell, part, sets).items():
                known = found.setdefault(name, np.full(self.index.num_responses, np.nan))
                found[name] = np.where(np.isnan(known), nll_R, known)
        if self.config.baseline is not None:
            found[baselines.OWN] = baselines.read_baseline(self.config.baseline, self.index)
            num = int(np.sum(~np.isnan(found[baselines.OWN])))
            self.notes.append(f"baseline: your file predicts {num:,} of {self.index.num_responses:,} responses")
        return {name: np.where(self.reader.left_out_R, np.nan, nll_R) for name, nll_R in found.items()}

    def _contrast_subjects(self) -> list[tuple[Contrast, Subject]]:
        return [
            (
                contrast,
                Subject(
                    effect_tables.sides(contrast),
                    self.moments[contrast].totals_P6,
                    (DIFFERENCE, EFFECT, EFFECT_DDOF_0) if self.config.as_published else (DIFFERENCE, EFFECT),
                    self.moments[contrast].pooled_G,
                    self._left_out_of(contrast),
                ),
            )
            for contrast in self.contrasts
        ]

    def _effects(self) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {name: [] for name in effect_tables.EFFECTS_OF.values()}
        of_contrasts: list[list[Row]] = []
        for contrast in self.contrasts:
            of_contrasts.append(
                effect_tables.effect_rows(
                    contrast,
                    self.moments[contrast],
                    self.index.groups,
                    0 if contrast.kind == PERSONA and self.config.as_published else 1,
                    self._left_out_of(contrast),
                )
            )
            rows[effect_tables.EFFECTS_OF[contrast.kind]] += of_contrasts[-1]
        paired = [self.moments[contrast].paired_P3 for contrast in self.contrasts]
        effect_tables.add_tests(of_contrasts, paired, self.index, self.config)
        return rows

    def _heat_map_effects(self) -> pl.DataFrame:
        """The effects that the category heat map averages: ddof = 0 in the study, as everywhere else in ours."""
        ddof = 0 if self.config.as_published else 1
        rows = [
            row
            for contrast in self.contrasts
            if contrast.kind == POST_TRAINING
            for row in effect_tables.effect_rows(contrast, self.moments[contrast], self.index.groups, ddof)
        ]
        return table("pair_effects", rows)

    def _left_out_of(self, contrast: Contrast) -> tuple[int, ...]:
        return self._groups_left_out(self.config.left_out_of_persona) if contrast.kind == PERSONA else ()

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
