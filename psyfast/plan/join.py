"""One plan of several: batches one after the other, their requests in order, entries counted through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from psyfast.plan.forest import IntArray
from psyfast.plan.pages import joined
from psyfast.plan.records import BranchRuns, Plan, ScoredRuns


def join_plans(plans: Sequence[Plan]) -> Plan:
    """The plans as one; without any, a plan of no batch and no request."""
    if len(plans) == 1:
        return plans[0]
    num_entries = [sum(len(batch.rows_N) for batch in plan.batches) for plan in plans]
    offsets = list(accumulate(num_entries, initial=0))
    return Plan(
        batches=tuple(batch for plan in plans for batch in plan.batches),
        requests=_join_runs([plan.requests for plan in plans], offsets),
        branches=BranchRuns(
            _join_runs([plan.branches.runs for plan in plans], offsets),
            _join_indptr([plan.branches.indptr for plan in plans]),
        ),
        num_request_tokens=sum(plan.num_request_tokens for plan in plans),
    )


def _join_runs(runs: Sequence[ScoredRuns], offsets: Sequence[int]) -> ScoredRuns:
    return ScoredRuns(
        entry=joined([one.entry + offset for one, offset in zip(runs, offsets, strict=False)]),
        column=joined([one.column for one in runs]),
        indptr=_join_indptr([one.indptr for one in runs]),
    )


def _join_indptr(indptrs: Sequence[IntArray]) -> IntArray:
    """Each counts on where the one before ends."""
    starts = accumulate((int(indptr[-1]) for indptr in indptrs), initial=0)
    return joined(
        [np.zeros(1, np.int64), *(indptr[1:] + start for indptr, start in zip(indptrs, starts, strict=False))]
    )
