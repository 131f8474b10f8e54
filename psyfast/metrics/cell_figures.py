"""Whatever one cell says by itself: one pass over its files, in which nothing of another cell is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from psyfast.metrics.agreement import agreement_rows
from psyfast.metrics.baselines import MARKOV
from psyfast.metrics.categories import Categories
from psyfast.metrics.choice_tables import choice_figures
from psyfast.metrics.choices import ChoiceReader
from psyfast.metrics.interval_tables import Subject
from psyfast.metrics.responses import Floats, Ints, ResponseIndex
from psyfast.metrics.results import Cell
from psyfast.metrics.score_tables import (
    ABOVE_MARKOV,
    accuracy_totals,
    baseline_rows,
    baseline_totals,
    experiment_rows,
)
from psyfast.metrics.scores import CellScores, ScoreReader
from psyfast.metrics.statistics_of_totals import MEAN, ratio

Row = dict[str, object]
ACCURACY = "accuracy"


@dataclass(frozen=True, eq=False)
class CellFigures:
    """Rows of the tables of one cell, and participants' totals of ratios, [P, 2].

    totals: by quantity; that of nll_nats are Σ NLL and the number of scored responses. pooled_G: the variance of the mean NLL
    that takes every response as independent.
    """

    cell: Cell
    experiments: list[Row]
    choices: list[Row]
    curves: list[Row]
    agreement: list[Row]
    baselines: list[Row]
    totals: Mapping[str, Floats]
    pooled_G: Floats

    def subjects(self) -> list[Subject]:
        """What is resampled for the intervals of this cell, the NLL first."""
        names: Row = {"model_a": self.cell.model, "condition_a": self.cell.condition}
        return [
            Subject(names, totals_P2, (ratio(name),), {MEAN.name: self.pooled_G})
            for name, totals_P2 in self.totals.items()
            if totals_P2.any()
        ]


@dataclass(frozen=True, eq=False)
class Sources:
    """What every cell is read with. item_R: items (agreement). baselines: their NLLs, [R]."""

    index: ResponseIndex
    reader: ScoreReader
    choices: ChoiceReader
    item_R: Ints
    baselines: Mapping[str, Floats]
    categories: Categories


def cell_figures(sources: Sources, cell: Cell) -> CellFigures:
    """Read a cell and compute what it says by itself."""
    index, scores = sources.index, sources.reader.read(*cell.key)
    choices = sources.choices.read(cell)
    of_choices = choice_figures(index, cell, scores, choices)
    against = {name: baseline_totals(index, scores, nll_R) for name, nll_R in sources.baselines.items()}
    items = np.where(scores.scored_R, sources.item_R, -1) if (sources.item_R >= 0).any() else None
    nll_P = index.sum_P(np.where(scores.scored_R, scores.nll_R, 0.0))
    totals = {
        MEAN.name: np.stack([nll_P, index.sum_P(scores.scored_R)], axis=1),
        ACCURACY: accuracy_totals(index, scores),
        **of_choices.totals,
    }
    if MARKOV in against:
        model_P, markov_P, num_P = against[MARKOV].T
        totals[ABOVE_MARKOV] = np.stack([model_P - markov_P, num_P], axis=1)
    return CellFigures(
        cell,
        experiment_rows(index, cell, scores, sources.categories),
        of_choices.rows,
        of_choices.curves,
        [] if items is None else agreement_rows(index, cell, choices, items),
        [row for name, totals_P3 in against.items() for row in baseline_rows(index, cell, name, totals_P3)],
        totals,
        _pooled_variance(scores),
    )


def _pooled_variance(scores: CellScores) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(scores.moments.sd_G(1) ** 2 / scores.moments.num_G)
