"""Choice sets as arrays, and what a model makes of them: probabilities renormalised over each set (PROTOCOL 4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from psyfast.metrics.responses import KEY, Floats, Ints, ResponseIndex, read_columns, response_rows
from psyfast.metrics.results import Cell, Part, Results


@dataclass(frozen=True, eq=False)
class ChoiceSets:
    """The responses of a run and condition that have 2 options or more and are one of them. Letters: N such responses.

    file_rows_N: their rows in the part's files. rows_N: their numbers. num_N: options; own_N: the response's place.
    label_M: every option of every set (M = Σ num), as `labels` numbers them.
    """

    file_rows_N: Ints
    rows_N: Ints
    num_N: Ints
    own_N: Ints
    label_M: Ints
    labels: tuple[str, ...]

    @property
    def start_N(self) -> Ints:
        """Where each set begins among all options."""
        return np.cumsum(self.num_N) - self.num_N


def read_choice_sets(index: ResponseIndex, cell: Cell, part: Part) -> ChoiceSets:
    """The sets that a cell's files hold; the same for every model of the run."""
    frame = read_columns(part, [*KEY, "response_idx", "response", "options"])
    frame = frame.with_columns(row=response_rows(index, frame, cell, part)).with_row_index("file_row")
    with_set = frame.filter(pl.col("options").list.len() >= 2).with_columns(pl.col("response").str.strip_chars())
    with_set = with_set.select("file_row", "row", "response", "options")
    options = with_set.explode("options").with_columns(place=pl.int_range(pl.len()).over("row"))
    own = options.filter(pl.col("options") == pl.col("response")).group_by("row").agg(own=pl.col("place").min())
    used = with_set.join(own, on="row", how="inner", maintain_order="left")
    flat = used["options"].explode()
    labels = flat.unique().sort()
    label_M = (
        flat.replace_strict(labels, range(len(labels)), return_dtype=pl.Int64) if len(flat) else flat.cast(pl.Int64)
    )
    return ChoiceSets(
        file_rows_N=used["file_row"].to_numpy().astype(np.int64),
        rows_N=used["row"].to_numpy().astype(np.int64),
        num_N=used["options"].list.len().to_numpy().astype(np.int64),
        own_N=used["own"].to_numpy().astype(np.int64),
        label_M=label_M.to_numpy().astype(np.int64),
        labels=tuple(labels.to_list()),
    )


@dataclass(frozen=True, eq=False)
class Choices:
    """A cell's choices. Letters: N responses whose every option has an NLL, M options.

    rows_N: their numbers. probability_M: over the set; start_N, num_N: where each set stands in it. own_nll_N: −log p of the
    response over its set, in nats. confidence_N: the largest probability; correct_N: whether that is the response's (the
    first of equals). brier_N: Σ (p − [option is the response])².
    """

    rows_N: Ints
    num_N: Ints
    start_N: Ints
    label_M: Ints
    labels: tuple[str, ...]
    own_N: Ints
    probability_M: Floats
    own_nll_N: Floats
    confidence_N: Floats
    correct_N: Floats
    brier_N: Floats


def read_choices(cell: Cell, part: Part, sets: ChoiceSets) -> Choices:
    """What a cell's model makes of each set."""
    column = read_columns(part, ["option_nll_nats"])["option_nll_nats"]
    if len(column) != len(sets.file_rows_N):
        column = column.gather(sets.file_rows_N)
    lengths = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    whole = lengths == sets.num_N
    kept = column.filter(pl.Series(whole))
    nll_M = (kept.explode() if len(kept) else kept.cast(pl.List(pl.Float64)).explode()).cast(pl.Float64)
    nll_M = nll_M.fill_null(np.nan).to_numpy()
    num_N = sets.num_N[whole]
    in_whole_M = np.repeat(whole, sets.num_N)
    if len(num_N):
        start_N = np.cumsum(num_N) - num_N
        finite_N = np.isfinite(np.add.reduceat(nll_M, start_N))
    else:
        finite_N = np.zeros(0, bool)
    nll_M, label_M = (
        nll_M[: num_N.sum()][np.repeat(finite_N, num_N)],
        sets.label_M[in_whole_M][np.repeat(finite_N, num_N)],
    )
    return _choices(
        sets.rows_N[whole][finite_N], num_N[finite_N], sets.own_N[whole][finite_N], nll_M, label_M, sets.labels
    )


def _choices(rows_N: Ints, num_N: Ints, own_N: Ints, nll_M: Floats, label_M: Ints, labels: tuple[str, ...]) -> Choices:
    if not len(rows_N):
        nothing = np.zeros(0)
        return Choices(rows_N, num_N, rows_N, label_M, labels, own_N, *(nothing for _ in range(5)))
    start_N = np.cumsum(num_N) - num_N
    lowest_N = np.minimum.reduceat(nll_M, start_N)
    weight_M = np.exp(np.repeat(lowest_N, num_N) - nll_M)
    total_N = np.add.reduceat(weight_M, start_N)
    probability_M = weight_M / np.repeat(total_N, num_N)
    own_M = start_N + own_N
    best_N = np.minimum.reduceat(
        np.where(nll_M == np.repeat(lowest_N, num_N), np.arange(len(nll_M)), len(nll_M)), start_N
    )
    squares_N = np.add.reduceat(probability_M**2, start_N)
    return Choices(
        rows_N=rows_N,
        num_N=num_N,
        start_N=start_N,
        label_M=label_M,
        labels=labels,
        own_N=own_N,
        probability_M=probability_M,
        own_nll_N=nll_M[own_M] - lowest_N + np.log(total_N),
        confidence_N=1 / total_N,
        correct_N=(best_N == own_M).astype(np.float64),
        brier_N=squares_N + 1 - 2 * probability_M[own_M],
    )


class ChoiceReader:
    """Reads choices; the sets of a run and condition are kept, as every model of the run has the same."""

    def __init__(self, index: ResponseIndex, results: Results) -> None:
        self._index, self._results = index, results
        self._sets: dict[tuple[str, str], ChoiceSets] = {}

    def sets(self, cell: Cell, part: Part) -> ChoiceSets:
        """The sets of a run under a condition."""
        key = (str(part.run), cell.condition)
        if key not in self._sets:
            while len(self._sets) >= 2:
                self._sets.pop(next(iter(self._sets)))
            self._sets[key] = read_choice_sets(self._index, cell, part)
        return self._sets[key]

    def read(self, cell: Cell) -> list[Choices]:
        """A cell's choices, one record a run that has the cell."""
        return [read_choices(cell, part, self.sets(cell, part)) for part in cell.parts]
