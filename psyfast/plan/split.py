"""A lone request whose branches are too many for one batch, where nothing is shared.

Each branch with tokens of its own then brings its whole past along, so hundreds of options of a transcript take
hundreds of times its memory. They do not need one another: they are planned in batches of at most so many slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from psyfast.plan.batch import plan_batch
from psyfast.plan.pages import PAGE_SLOTS, indptr_of, joined
from psyfast.plan.records import BranchRuns, Plan, Request, ScoredRuns, ScoredTokens


def plan_unshared(request: Request, max_slots: int) -> Plan:
    """Plan one request without sharing, in as many batches as it needs; one sequence that takes more stands alone."""
    pieces = list(_pieces(request, max_slots))
    unscored = replace(request, scored_positions=request.scored_positions[:0])
    plans = []
    for piece_idx, piece in enumerate(pieces):
        whole = request if piece_idx == 0 else unscored
        branches = tuple(request.branches[branch_idx] for branch_idx in piece)
        plans.append(plan_batch([replace(whole, branches=branches)], share=False))
    return _joined_plan(request, pieces, plans)


def _pieces(request: Request, max_slots: int) -> Iterator[list[int]]:
    """Branches of each batch: with the first goes the request itself, and what is predicted from its rows."""
    piece = [i for i, branch in enumerate(request.branches) if not branch.num_own_tokens]
    slots = _slots_of(request.num_unshared_inputs)
    for branch_idx, branch in enumerate(request.branches):
        if not branch.num_own_tokens:
            continue
        own_slots = _slots_of(branch.start + branch.num_own_tokens)
        if slots and slots + own_slots > max_slots:
            yield piece
            piece, slots = [], 0
        piece.append(branch_idx)
        slots += own_slots
    yield piece


def _slots_of(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SLOTS) * PAGE_SLOTS


def _joined_plan(request: Request, pieces: Sequence[Sequence[int]], plans: Sequence[Plan]) -> Plan:
    """One plan of all pieces' batches, the branches in the request's order again."""
    places: dict[int, ScoredTokens] = {}
    num_entries = 0
    for piece, plan in zip(pieces, plans, strict=True):
        for branch_idx, tokens in zip(piece, plan.branches[0], strict=True):
            places[branch_idx] = ScoredTokens(tokens.entry + num_entries, tokens.column)
        num_entries += len(plan.batch.rows_N)
    runs = [places[branch_idx] for branch_idx in range(len(request.branches))]
    branches = ScoredRuns(
        entry=joined([tokens.entry for tokens in runs]),
        column=joined([tokens.column for tokens in runs]),
        indptr=indptr_of([len(tokens.entry) for tokens in runs]),
    )
    return Plan(
        batches=tuple(plan.batch for plan in plans),
        requests=plans[0].requests,
        branches=BranchRuns(branches, np.array([0, len(runs)], np.int64)),
        num_request_tokens=request.num_tokens,
    )
