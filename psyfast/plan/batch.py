"""From requests to one batch of the engine, and from the engine's rows back to the requests.

ids       10 11 12 13 14 15          scored_positions 3, 5: the tokens 13 and 15
rows          *     *                predicted from the rows of positions 2 and 4; token 15 is never an input
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from psyfast.plan.forest import Forest, IntArray, Path
from psyfast.plan.pages import PAGE_SLOTS, PageTables, build_pages, joined

MAX_OPTION_COLUMNS = 64


@dataclass(frozen=True)
class Branch:
    """An alternative continuation: the request's first `start` ids, then `ids`.

    Its scored tokens are those at positions [score_start, score_stop) of that sequence.
    """

    start: int
    ids: IntArray
    score_start: int
    score_stop: int


@dataclass(frozen=True)
class Request:
    """A token sequence, the positions (≥ 1) whose tokens are scored, and its branches."""

    ids: IntArray
    scored_positions: IntArray
    branches: tuple[Branch, ...] = ()

    @property
    def num_inputs(self) -> int:
        """Tokens that must be computed: nothing after the last row that predicts a scored token or starts a branch."""
        last_scored = int(self.scored_positions.max()) if len(self.scored_positions) else 0
        return max([last_scored, *(branch.start for branch in self.branches)])

    @property
    def num_tokens(self) -> int:
        """Tokens to compute where only a branch's first tokens are shared, with its own request."""
        return self.num_inputs + sum(max(0, branch.score_stop - 1 - branch.start) for branch in self.branches)

    def num_slots(self, *, share: bool = True) -> int:
        """Page slots that the request takes at most, nothing shared with others: what a window's size counts."""
        pages = -(-self.num_inputs // PAGE_SLOTS)
        for branch in self.branches:
            if branch.score_stop - 1 > branch.start:
                first_page = branch.start // PAGE_SLOTS if share else 0
                pages += (branch.score_stop - 2) // PAGE_SLOTS - first_page + 1
        return pages * PAGE_SLOTS


@dataclass(frozen=True)
class Batch:
    """What the engine runs: T tokens of a forest in pages, N scored rows (entries), K option columns (−1: none)."""

    token_ids_T: IntArray
    positions_T: IntArray
    pages: PageTables
    rows_N: IntArray
    target_N: IntArray
    option_ids_NK: IntArray


@dataclass(frozen=True)
class ScoredTokens:
    """Where the scores of one run of scored tokens stand: entry of the batch, option column or −1 for its target."""

    entry: IntArray
    column: IntArray


@dataclass(frozen=True)
class Plan:
    """A batch, and for each request its scored tokens and those of its branches."""

    batch: Batch
    requests: tuple[ScoredTokens, ...]
    branches: tuple[tuple[ScoredTokens, ...], ...]
    num_request_tokens: int


def plan_batch(requests: Sequence[Request], *, share: bool = True) -> Plan:
    """Plan requests as one batch: a pure function of its arguments."""
    forest = Forest(share)
    trunks: list[Path] = []
    branches: list[list[Path]] = []
    for request in requests:
        trunk = forest.add(request.ids[: request.num_inputs])
        trunks.append(trunk)
        branches.append([forest.branch(trunk, b.start, b.ids[: b.score_stop - 1 - b.start]) for b in request.branches])
    rows = _TokenRows(forest)
    entries = _Entries()
    scored = []
    for request, trunk in zip(requests, trunks, strict=True):
        positions = request.scored_positions
        scored.append(entries.targets(rows.at(trunk, positions - 1), request.ids[positions]))
    branch_scored = []
    for request, paths in zip(requests, branches, strict=True):
        places = []
        for branch, path in zip(request.branches, paths, strict=True):
            positions = np.arange(branch.score_start, branch.score_stop)
            full = np.concatenate([request.ids[: branch.start], branch.ids])
            places.append(entries.options(rows.at(path, positions - 1), full[positions]))
        branch_scored.append(tuple(places))
    batch = Batch(
        token_ids_T=joined([segment.ids for segment in forest.segments]),
        positions_T=joined([np.arange(segment.start, segment.stop) for segment in forest.segments]),
        pages=build_pages(forest),
        rows_N=np.array(entries.rows, np.int64),
        target_N=np.array(entries.target_ids, np.int64),
        option_ids_NK=entries.option_matrix(),
    )
    return Plan(batch, tuple(scored), tuple(branch_scored), sum(request.num_tokens for request in requests))


class _TokenRows:
    """Finds the index into the batch's tokens of a sequence's positions."""

    def __init__(self, forest: Forest) -> None:
        lengths = [len(segment.ids) for segment in forest.segments]
        self._starts = np.array([segment.start for segment in forest.segments], np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def at(self, path: Path, positions: IntArray) -> IntArray:
        if not len(positions):
            return np.zeros(0, np.int64)
        assert positions.min() >= 0 and positions.max() < path.stops[-1], "a scored token has no row before it"
        segment_idx = np.array(path.segments, np.int64)[np.searchsorted(np.array(path.stops), positions, side="right")]
        rows: IntArray = self._offsets[segment_idx] + positions - self._starts[segment_idx]
        return rows


class _Entries:
    """The rows that meet the LM head: one entry a (row, target); options ride on an entry of their row."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.target_ids: list[int] = []
        self._columns: list[dict[int, int]] = []
        self._by_target: dict[tuple[int, int], int] = {}
        self._by_row: dict[int, list[int]] = {}

    def targets(self, rows: IntArray, ids: IntArray) -> ScoredTokens:
        """Entries with these targets (their rank is needed, so each distinct pair has an entry of its own)."""
        entry = [self._target(row, token_id) for row, token_id in zip(rows.tolist(), ids.tolist(), strict=True)]
        return ScoredTokens(np.array(entry, np.int64), np.full(len(entry), -1, np.int64))

    def options(self, rows: IntArray, ids: IntArray) -> ScoredTokens:
        """Columns of entries of the same rows where there are any, else entries."""
        places = [self._option(row, token_id) for row, token_id in zip(rows.tolist(), ids.tolist(), strict=True)]
        pairs = np.array(places, np.int64).reshape(len(places), 2)
        return ScoredTokens(pairs[:, 0], pairs[:, 1])

    def option_matrix(self) -> NDArray[np.int64]:
        """option_ids_NK, padded with −1."""
        width = max((len(columns) for columns in self._columns), default=0)
        matrix = np.full((len(self.rows), width), -1, np.int64)
        for entry_idx, columns in enumerate(self._columns):
            for token_id, column in columns.items():
                matrix[entry_idx, column] = token_id
        return matrix

    def _target(self, row: int, token_id: int) -> int:
        entry_idx = self._by_target.get((row, token_id))
        if entry_idx is None:
            entry_idx = len(self.rows)
            self.rows.append(row)
            self.target_ids.append(token_id)
            self._columns.append({})
            self._by_target[row, token_id] = entry_idx
            self._by_row.setdefault(row, []).append(entry_idx)
        return entry_idx

    def _option(self, row: int, token_id: int) -> tuple[int, int]:
        if (row, token_id) in self._by_target:
            return self._by_target[row, token_id], -1
        for entry_idx in self._by_row.get(row, []):
            columns = self._columns[entry_idx]
            if token_id in columns:
                return entry_idx, columns[token_id]
            if len(columns) < MAX_OPTION_COLUMNS:
                columns[token_id] = len(columns)
                return entry_idx, columns[token_id]
        return self._target(row, token_id), -1
