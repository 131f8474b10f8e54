"""A cell's NLLs and arg maxes by response, read once and kept while others are held against them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from psyfast.errors import RunError
from psyfast.metrics.group_moments import GroupMoments, group_moments
from psyfast.metrics.responses import Bools, Floats, ResponseIndex, read_columns
from psyfast.metrics.results import Cell, Results
from psyfast.metrics.row_numbers import RowNumbers


@dataclass(frozen=True, eq=False)
class CellScores:
    """A cell's columns by response. nll_R: nats, NaN where it was not scored. argmax_R: 1, 0, or −1 where unknown.

    present_R: whether the cell has a row for the response at all.
    """

    index: ResponseIndex
    nll_R: Floats
    argmax_R: NDArray[np.int8]
    present_R: Bools

    @cached_property
    def scored_R(self) -> Bools:
        """Whether the response has an NLL."""
        return ~np.isnan(self.nll_R)

    @cached_property
    def moments(self) -> GroupMoments:
        """Of all NLLs, by group."""
        return group_moments(self.index, self.nll_R, self.scored_R)


def read_scores(index: ResponseIndex, cell: Cell, numbers: RowNumbers | None = None) -> CellScores:
    """Read the NLLs and arg maxes of a cell. Raises RunError where its rows are not those of the participants table."""
    numbers = numbers or RowNumbers(index)
    nll_R = np.full(index.num_responses, np.nan)
    argmax_R = np.full(index.num_responses, -1, np.int8)
    present_R = np.zeros(index.num_responses, bool)
    for part in cell.parts:
        rows = numbers.of(cell, part)
        if len(cell.parts) > 1 and present_R[rows].any():
            raise RunError(
                f"{part.run}: model {cell.model}, condition {cell.condition} holds responses that {cell.parts[0].run} "
                "holds, too; name only one of these runs"
            )
        frame = read_columns(part, ["nll_nats", "is_argmax"])
        present_R[rows] = True
        nll_R[rows] = frame["nll_nats"].fill_null(np.nan).to_numpy()
        argmax_R[rows] = frame["is_argmax"].cast(pl.Int8).fill_null(-1).to_numpy()
    return CellScores(index, nll_R, argmax_R, present_R)


class ScoreReader:
    """Reads cells, keeping the last few in memory: pairs share their bases. Studies left out have no rows then."""

    def __init__(
        self,
        index: ResponseIndex,
        results: Results,
        *,
        left_out: Sequence[str] = (),
        max_bytes: int = 600_000_000,
    ) -> None:
        self.index = index
        self.results = results
        self.numbers = RowNumbers(index)
        self.left_out_R: Bools = index.participants["study"].is_in(list(left_out)).to_numpy()[index.participant_R]
        self._kept: dict[tuple[str, str], CellScores] = {}
        self._max_cells = max(2, max_bytes // max(1, index.num_responses * 11))
        self._lock = threading.Lock()

    def read(self, model: str, condition: str) -> CellScores:
        """The scores of a cell that is there. Several threads may read at once, each another cell."""
        key = (model, condition)
        with self._lock:
            scores = self._kept.pop(key, None)
        if scores is None:
            cell = self.results.cell(model, condition)
            assert cell is not None, f"no cell {key}"
            scores = self._without_left_out(read_scores(self.index, cell, self.numbers))
        with self._lock:
            self._kept[key] = scores
            while len(self._kept) > self._max_cells:
                self._kept.pop(next(iter(self._kept)))
        return scores

    def _without_left_out(self, scores: CellScores) -> CellScores:
        if not self.left_out_R.any():
            return scores
        return CellScores(
            self.index,
            np.where(self.left_out_R, np.nan, scores.nll_R),
            np.where(self.left_out_R, np.int8(-1), scores.argmax_R),
            scores.present_R & ~self.left_out_R,
        )
