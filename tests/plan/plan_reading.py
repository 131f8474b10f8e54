"""Reads plans without the planner: what the engine would see through the page tables, and whether two plans are equal."""

from __future__ import annotations

import dataclasses

import numpy as np

from psyfast.plan.pages import PAGE_SLOTS


class PastReader:
    """A stand-in engine: instead of a score it gives (the row's whole past, the token)."""

    def __init__(self, plan):
        self._plan = plan
        self._ends = np.cumsum([len(batch.rows_N) for batch in plan.batches])
        self._pasts = [_held_by_row(batch) for batch in plan.batches]

    def found(self, tokens):
        """(past, token) of each scored token, where the plan says that its score stands."""
        places = []
        for entry, column in zip(tokens.entry, tokens.column, strict=True):
            batch_idx = int(np.searchsorted(self._ends, entry, side="right"))
            batch = self._plan.batches[batch_idx]
            in_batch = entry - (self._ends[batch_idx - 1] if batch_idx else 0)
            target = batch.target_N[in_batch] if column < 0 else batch.option_ids_NK[in_batch, column]
            row = batch.rows_N[in_batch]
            past = self._pasts[batch_idx][row][: batch.positions_T[row] + 1]
            places.append((tuple(past.tolist()), int(target)))
        return places


def _held_by_row(batch):
    """For each row the tokens in the pages of its segment, read through the page tables alone."""
    pages = batch.pages
    cache = np.full(pages.num_pages * PAGE_SLOTS, -1)
    cache[pages.slots_T] = batch.token_ids_T
    cache[pages.copy_to] = cache[pages.copy_from]
    held_by_row = []
    for s in range(len(pages.qo_indptr) - 1):
        kv = pages.kv_indices[pages.kv_indptr[s] : pages.kv_indptr[s + 1]]
        held = cache.reshape(-1, PAGE_SLOTS)[kv].reshape(-1)
        held_by_row += [held] * int(pages.qo_indptr[s + 1] - pages.qo_indptr[s])
    return held_by_row


def assert_same(one, other, where="plan"):
    """Every array of two records is equal in type, shape and elements."""
    assert type(one) is type(other), where
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype == np.int64, where
        assert one.shape == other.shape, where
        assert np.array_equal(one, other), where
    elif isinstance(one, tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    else:
        assert one == other, where
