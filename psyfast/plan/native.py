"""The native planner (csrc/batch_plan.cc): requests are handed over as concatenated arrays, plans come back as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from psyfast import _native
from psyfast.errors import RequestError
from psyfast.plan.forest import IntArray, TokenIds
from psyfast.plan.pages import PageTables
from psyfast.plan.records import Batch, BranchRuns, Plan, Request, ScoredRuns

NO_LIMIT = -1


class NativeBuilder:
    """A BatchBuilder (psyfast.plan.batch)."""

    def __init__(self, *, share: bool = True) -> None:
        self._native = _native.BatchBuilder(share=share)

    @property
    def num_requests(self) -> int:
        """Requests that were added."""
        return self._native.num_requests

    @property
    def num_tokens(self) -> int:
        """Tokens that the engine would compute, shared prefixes once."""
        return self._native.num_tokens

    @property
    def num_slots(self) -> int:
        """Page slots that the batch would take, shared pages once."""
        return self._native.num_slots

    def add(self, requests: Sequence[Request], max_slots: int | None = None) -> int:
        """Add requests in order while the batch stays within max_slots; returns how many."""
        limit = NO_LIMIT if max_slots is None else max(0, max_slots)
        try:
            return self._native.add(max_slots=limit, **_concatenated(requests))
        except (TypeError, ValueError) as error:  # numpy's on arrays that cannot be joined; std::invalid_argument
            raise RequestError(str(error)) from error

    def finish(self) -> Plan:
        """The plan of what was added, with one batch."""
        found = self._native.finish()
        return Plan(
            batches=(Batch(pages=PageTables(num_pages=found["num_pages"], **found["pages"]), **found["batch"]),),
            requests=ScoredRuns(**found["requests"]),
            branches=BranchRuns(ScoredRuns(**found["branches"]), found["branch_indptr"]),
            num_request_tokens=self._native.num_request_tokens,
        )


def _concatenated(requests: Sequence[Request]) -> dict[str, IntArray]:
    branches = [branch for request in requests for branch in request.branches]
    return {
        "ids": _joined([request.ids for request in requests]),
        "ids_indptr": _indptr(len(request.ids) for request in requests),
        "scored_positions": _joined([request.scored_positions for request in requests]),
        "scored_indptr": _indptr(len(request.scored_positions) for request in requests),
        "branch_indptr": _indptr(len(request.branches) for request in requests),
        "branch_start": np.array([branch.start for branch in branches], np.int64),
        "branch_ids": _joined([branch.ids for branch in branches]),
        "branch_ids_indptr": _indptr(len(branch.ids) for branch in branches),
        "score_start": np.array([branch.score_start for branch in branches], np.int64),
        "score_stop": np.array([branch.score_stop for branch in branches], np.int64),
    }


def _joined(arrays: Sequence[TokenIds]) -> IntArray:
    """Concatenation of arrays of any integer type."""
    return np.concatenate(arrays, dtype=np.int64, casting="same_kind") if arrays else np.zeros(0, np.int64)


def _indptr(lengths: Iterable[int]) -> IntArray:
    return np.array(list(accumulate(lengths, initial=0)), np.int64)
