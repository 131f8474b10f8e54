"""Choice sets as arrays, and what a model makes of them: probabilities renormalised over each set (PROTOCOL 4)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from psyfast.metrics.responses import Bools, Floats, Ints, read_columns
from psyfast.metrics.results import Cell, Part
from psyfast.metrics.row_numbers import KEY_COLUMNS, RowNumbers, columns_sha256


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

    @cached_property
    def start_N(self) -> Ints:
        """Where each set begins among all options."""
        return np.cumsum(self.num_N) - self.num_N

    @cached_property
    def by_size(self) -> tuple[tuple[Ints, Ints], ...]:
        """Sets of one size each: which (of N), and their options (of M) as [size, sets]."""
        return sets_by_size(self.num_N)


def sets_by_size(num_N: Ints) -> tuple[tuple[Ints, Ints], ...]:
    """Which sets have each size, and where their options stand, [size, sets]: arrays that need no ragged sums."""
    start_N = np.cumsum(num_N) - num_N
    found = []
    for size in np.flatnonzero(np.bincount(num_N)).tolist():
        which = np.flatnonzero(num_N == size)
        found.append((which, start_N[which] + np.arange(size)[:, None]))
    return tuple(found)


def read_choice_sets(numbers: RowNumbers, cell: Cell, part: Part) -> ChoiceSets:
    """The sets that a cell's files hold; the same for every model of the run."""
    frame = read_columns(part, ["response", "options"])
    frame = frame.with_columns(row=numbers.of(cell, part)).with_row_index("file_row")
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

    rows_N: their numbers. nll_M: of each option, nats; start_N, num_N: where each set stands in it; lse_N: log Σ exp(−nll)
    over the set. own_nll_N: −log p of the response over its set, in nats. confidence_N: the largest probability;
    correct_N: whether that is the response's (the first of equals). brier_N: Σ (p − [option is the response])².
    """

    rows_N: Ints
    num_N: Ints
    start_N: Ints
    label_M: Ints
    labels: tuple[str, ...]
    own_N: Ints
    nll_M: Floats
    lse_N: Floats
    own_nll_N: Floats
    confidence_N: Floats
    correct_N: Bools
    brier_N: Floats

    @cached_property
    def probability_M(self) -> Floats:
        """Each option's probability over its set."""
        return np.exp(-self.nll_M - np.repeat(self.lse_N, self.num_N))


def read_choices(cell: Cell, part: Part, sets: ChoiceSets) -> Choices:
    """What a cell's model makes of each set."""
    column = read_columns(part, ["option_nll_nats"])["option_nll_nats"]
    if len(column) != len(sets.file_rows_N):
        column = column.gather(sets.file_rows_N)
    whole_N = column.list.len().fill_null(0).to_numpy() == sets.num_N
    if not whole_N.all():
        column = column.filter(pl.Series(whole_N))
    nll_M = (column.explode() if len(column) else column.cast(pl.List(pl.Float64)).explode()).cast(pl.Float64)
    nll_M = nll_M.fill_null(np.nan).to_numpy()[: sets.num_N[whole_N].sum()]
    if whole_N.all() and np.isfinite(nll_M).all():
        return _choices(sets, nll_M, sets.by_size)
    num_N = sets.num_N[whole_N]
    finite_N = np.ones(len(num_N), bool)
    if len(num_N):
        finite_N = np.isfinite(np.add.reduceat(nll_M, np.cumsum(num_N) - num_N))
    kept_N = whole_N.copy()
    kept_N[whole_N] = finite_N
    kept = ChoiceSets(
        file_rows_N=sets.file_rows_N[kept_N],
        rows_N=sets.rows_N[kept_N],
        num_N=sets.num_N[kept_N],
        own_N=sets.own_N[kept_N],
        label_M=sets.label_M[np.repeat(kept_N, sets.num_N)],
        labels=sets.labels,
    )
    return _choices(kept, nll_M[np.repeat(finite_N, num_N)], kept.by_size)


def _choices(sets: ChoiceSets, nll_M: Floats, by_size: tuple[tuple[Ints, Ints], ...]) -> Choices:
    num = len(sets.rows_N)
    lse_N, own_nll_N, confidence_N, brier_N = (np.empty(num) for _ in range(4))
    correct_N = np.empty(num, bool)
    for which, options in by_size:
        nll_KN, own = nll_M[options], sets.own_N[which]
        lowest = nll_KN.min(axis=0)
        weight_KN = np.exp(lowest - nll_KN)
        total = weight_KN.sum(axis=0)
        own_p = np.take_along_axis(weight_KN, own[None], axis=0)[0] / total
        lse_N[which] = np.log(total) - lowest
        own_nll_N[which] = np.take_along_axis(nll_KN, own[None], axis=0)[0] + lse_N[which]
        confidence_N[which] = 1 / total
        correct_N[which] = nll_KN.argmin(axis=0) == own
        brier_N[which] = np.square(weight_KN).sum(axis=0) / total**2 + 1 - 2 * own_p
    return Choices(
        sets.rows_N, sets.num_N, sets.start_N, sets.label_M, sets.labels, sets.own_N,
        nll_M, lse_N, own_nll_N, confidence_N, correct_N, brier_N,
    )  # fmt: skip


class ChoiceReader:
    """Reads choices; the last few sets are kept, as every model of a run has the same."""

    def __init__(self, numbers: RowNumbers, num_kept: int = 2) -> None:
        self._numbers, self._num_kept = numbers, num_kept
        self._sets: dict[str, ChoiceSets] = {}
        self._lock = threading.Lock()

    def sets(self, cell: Cell, part: Part) -> ChoiceSets:
        """The sets of a cell's files."""
        key = columns_sha256(part, (*KEY_COLUMNS, "response", "options"))
        with self._lock:
            if key not in self._sets:
                while len(self._sets) >= self._num_kept:
                    self._sets.pop(next(iter(self._sets)))
                self._sets[key] = read_choice_sets(self._numbers, cell, part)
            return self._sets[key]

    def read(self, cell: Cell) -> list[Choices]:
        """A cell's choices, one record a run that has the cell."""
        return [read_choices(cell, part, self.sets(cell, part)) for part in cell.parts]
