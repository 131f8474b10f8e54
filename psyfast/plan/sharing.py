"""What each group of a window's requests adds to what the groups before it have: tokens, and rows of the head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from psyfast.plan.batch import batch_builder
from psyfast.plan.records import Plan, Request


def added_tokens(
    batches: Sequence[Sequence[tuple[int, Request]]], num_groups: int, *, share: bool = True
) -> tuple[int, ...]:
    """Tokens that each group adds, over all batches; the sum is what the engine computes.

    batches: of each the requests with their group's index. What a batch computes are its distinct prefixes, so the
    order inside a group does not matter.
    """
    added = [0] * num_groups
    for batch in batches:
        builder = batch_builder(share=share)
        before = 0
        for group_idx in range(num_groups):
            builder.add([request for its_group, request in batch if its_group == group_idx])
            added[group_idx] += builder.num_tokens - before
            before = builder.num_tokens
    return tuple(added)


def added_rows(plan: Plan, group_of_request: Sequence[int], num_groups: int) -> tuple[int, ...]:
    """Rows of the LM head that each group's requests and branches need beyond those of the groups before it."""
    if not plan.batches:
        return (0,) * num_groups
    starts = accumulate((len(batch.token_ids_T) for batch in plan.batches), initial=0)
    row_of_entry = np.concatenate([batch.rows_N + start for batch, start in zip(plan.batches, starts, strict=False)])
    group_of_entry = np.full(len(row_of_entry), num_groups)
    for group_idx, tokens, branches in zip(group_of_request, plan.requests, plan.branches, strict=True):
        for entry in (tokens.entry, branches.entry[branches.indptr[0] : branches.indptr[-1]]):
            np.minimum.at(group_of_entry, entry, group_idx)
    order = np.argsort(group_of_entry, kind="stable")
    _, first = np.unique(row_of_entry[order], return_index=True)
    counts = np.bincount(group_of_entry[order][first], minlength=num_groups)
    return tuple(int(number) for number in counts[:num_groups])
