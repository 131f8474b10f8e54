"""The planner in Python: the oracle of the native one, and what plans where that is not built.

Both give the same arrays, and refuse the same requests with the same words (csrc/batch_plan.cc, csrc/requests.cc).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from psyfast.errors import RequestError
from psyfast.plan.forest import Forest, IntArray, Path, TokenIds
from psyfast.plan.pages import build_pages, indptr_of, joined, num_slots
from psyfast.plan.records import Batch, Branch, BranchRuns, Plan, Request, ScoredRuns, ScoredTokens

MAX_OPTION_COLUMNS = 64


@dataclass(frozen=True)
class _Placed:
    """A request with the paths of its sequence and of its branches."""

    request: Request
    trunk: Path
    branches: tuple[Path, ...]


class ReferenceBuilder:
    """A BatchBuilder (psyfast.plan.batch)."""

    def __init__(self, *, share: bool = True) -> None:
        self._forest = Forest(share)
        self._placed: list[_Placed] = []

    @property
    def num_requests(self) -> int:
        """Requests that were added."""
        return len(self._placed)

    @property
    def num_tokens(self) -> int:
        """Tokens that the engine would compute, shared prefixes once."""
        return sum(len(segment.ids) for segment in self._forest.segments)

    @property
    def num_slots(self) -> int:
        """Page slots that the batch would take, shared pages once."""
        return num_slots(self._forest.segments)

    def add(self, requests: Sequence[Request], max_slots: int | None = None) -> int:
        """Add requests in order while the batch stays within max_slots; returns how many."""
        for request_idx, request in enumerate(requests):
            _check(request_idx, request)
        for request_idx, request in enumerate(requests):
            forest = self._forest if max_slots is None else self._forest.copy()
            placed = _place(forest, request)
            if max_slots is not None and num_slots(forest.segments) > max_slots:
                return request_idx
            self._forest = forest
            self._placed.append(placed)
        return len(requests)

    def finish(self) -> Plan:
        """The plan of what was added, with one batch."""
        order = self._forest.batch_order()
        rank_of = {segment_idx: rank for rank, segment_idx in enumerate(order)}
        segments = [self._forest.segments[segment_idx] for segment_idx in order]
        segments = [replace(s, parent=rank_of.get(s.parent, s.parent)) for s in segments]
        rows = _TokenRows(self._forest, order)
        entries = _Entries()
        scored = []
        for one in self._placed:
            positions = one.request.scored_positions
            scored.append(entries.targets(rows.at(one.trunk, positions - 1), one.request.ids[positions]))
        branch_scored = []
        for one in self._placed:
            for branch, path in zip(one.request.branches, one.branches, strict=True):
                positions = np.arange(branch.score_start, branch.score_stop)
                full = np.concatenate([one.request.ids[: branch.start], branch.ids])
                branch_scored.append(entries.options(rows.at(path, positions - 1), full[positions]))
        batch = Batch(
            token_ids_T=joined([segment.ids for segment in segments]),
            positions_T=joined([np.arange(segment.start, segment.stop) for segment in segments]),
            pages=build_pages(segments),
            rows_N=np.array(entries.rows, np.int64),
            target_N=np.array(entries.target_ids, np.int64),
            option_ids_NK=entries.option_matrix(),
        )
        num_branches = [len(one.branches) for one in self._placed]
        num_request_tokens = sum(one.request.num_tokens for one in self._placed)
        return Plan(
            (batch,), _runs(scored), BranchRuns(_runs(branch_scored), indptr_of(num_branches)), num_request_tokens
        )


def _place(forest: Forest, request: Request) -> _Placed:
    """Add a request to a forest; a branch without tokens of its own is predicted from rows of the request's."""
    trunk = forest.add(request.ids[: request.num_inputs if forest.share else request.num_unshared_inputs])
    paths = []
    for branch in request.branches:
        own = branch.ids[: branch.num_own_tokens]
        if not len(own):
            paths.append(trunk)
        elif forest.share:
            paths.append(forest.branch(trunk, branch.start, own))
        else:
            paths.append(forest.add(np.concatenate([request.ids[: branch.start], own])))
    return _Placed(request, trunk, tuple(paths))


class _TokenRows:
    """Finds the index into the batch's tokens of a sequence's positions."""

    def __init__(self, forest: Forest, order: Sequence[int]) -> None:
        self._starts = np.array([segment.start for segment in forest.segments], np.int64)
        self._offsets = np.zeros(len(order), np.int64)
        self._offsets[order] = indptr_of([len(forest.segments[i].ids) for i in order])[:-1]

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

    def targets(self, rows: IntArray, ids: TokenIds) -> ScoredTokens:
        """Entries with these targets (their rank is needed, so each distinct pair has an entry of its own)."""
        entry = [self._target(row, token_id) for row, token_id in zip(rows.tolist(), ids.tolist(), strict=True)]
        return ScoredTokens(np.array(entry, np.int64), np.full(len(entry), -1, np.int64))

    def options(self, rows: IntArray, ids: TokenIds) -> ScoredTokens:
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


def _runs(scored: Sequence[ScoredTokens]) -> ScoredRuns:
    return ScoredRuns(
        entry=joined([tokens.entry for tokens in scored]),
        column=joined([tokens.column for tokens in scored]),
        indptr=indptr_of([len(tokens.entry) for tokens in scored]),
    )


def _check(request_idx: int, request: Request) -> None:
    whose = f"request {request_idx}"
    num_ids = len(request.ids)
    _check_ids(whose, request.ids)
    _check_type(whose, request.scored_positions)
    for position in request.scored_positions.tolist():
        if not 1 <= position < num_ids:
            raise RequestError(
                f"{whose} scores position {position}, expected 1 to {num_ids - 1}, a token of its own with one before "
                "it; leave it out"
            )
    for branch_idx, branch in enumerate(request.branches):
        _check_branch(f"{whose}, branch {branch_idx}", branch, num_ids)


def _check_branch(whose: str, branch: Branch, num_ids: int) -> None:
    if not 0 <= branch.start <= num_ids:
        raise RequestError(
            f"{whose} starts at {branch.start}, expected 0 to {num_ids}, the length of its request; fork it off tokens "
            "that are there"
        )
    _check_ids(whose, branch.ids)
    stop = branch.start + len(branch.ids)
    if not 1 <= branch.score_start <= branch.score_stop <= stop:
        raise RequestError(
            f"{whose} scores positions {branch.score_start} to {branch.score_stop} (half-open), expected them within "
            f"1 to {stop}, where its tokens end; score what it holds"
        )


def _check_ids(whose: str, ids: TokenIds) -> None:
    _check_type(whose, ids)
    (negative,) = np.nonzero(ids < 0)
    if len(negative):
        raise RequestError(
            f"{whose} has token id {ids[negative[0]]} at {negative[0]}, expected 0 or more; pass ids of the model's "
            "vocabulary"
        )


def _check_type(whose: str, array: TokenIds) -> None:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise RequestError(
            f"{whose} has an array of {array.dtype} in {array.ndim} dimensions, expected one of integers; convert it"
        )
