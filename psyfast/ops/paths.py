"""Which row of a batch stands before which on its path: what a recurrence over a forest needs, read off the page tables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from psyfast.ops.records import Pages

PAGE_SLOTS = 64


def parent_rows(pages: Pages) -> Tensor:
    """For each segment the row before its first on its path, or −1 for a root: int64 [segments].

    The page tables say where the keys of that position were written, and so by which row.
    """
    return _once(pages, "parent_rows", _parent_rows)


def rows_before(pages: Pages) -> Tensor:
    """For each row the one before it on its path, or −1: int64 [T]. Always a row with a lower index."""
    return _once(pages, "rows_before", _rows_before)


def tap_rows(pages: Pages, num_taps: int) -> Tensor:
    """For each tap of a causal filter, the last one the row itself, the row it reads, or −1: int32 [taps, T]."""

    def compute(pages: Pages) -> Tensor:
        before_T = rows_before(pages)
        rows = [torch.arange(len(before_T), device=before_T.device)]
        while len(rows) < num_taps:
            rows.append(torch.where(rows[-1] >= 0, before_T[rows[-1]], -1))
        return torch.stack(rows[::-1]).to(torch.int32)

    return _once(pages, f"tap_rows {num_taps}", compute)


def _once(pages: Pages, key: str, compute: Callable[[Pages], Tensor]) -> Tensor:
    """Once a batch: every layer asks."""
    if key not in pages.derived:
        pages.derived[key] = compute(pages)
    found: Tensor = pages.derived[key]
    return found


def _parent_rows(pages: Pages) -> Tensor:
    S, num_pages = PAGE_SLOTS, len(pages.page_index_P)
    device = pages.slots_T.device
    row_of_slot = torch.full((num_pages * S,), -1, dtype=torch.int64, device=device)
    row_of_slot[pages.slots_T] = torch.arange(len(pages.slots_T), device=device)
    row_of_slot[pages.copy_to] = row_of_slot[pages.copy_from]
    firsts = pages.qo_indptr[:-1]
    before = pages.positions_T[firsts] - 1
    has_parent = before >= 0
    page = pages.kv_indices[pages.kv_indptr[:-1] + torch.where(has_parent, before, 0) // S]
    return torch.where(has_parent, row_of_slot[page * S + before % S], -1)


def _rows_before(pages: Pages) -> Tensor:
    before = torch.arange(len(pages.slots_T), device=pages.slots_T.device) - 1
    before[pages.qo_indptr[:-1]] = parent_rows(pages)
    return before
