"""Pages: where the keys and values of a forest's tokens lie, as CSR tables (letters: P pages, S slots a page).

Page j of a segment's list holds positions S·j … S·j + S − 1 of its path. A segment that begins inside a page starts
with a copy of that page's head, so that a page is read from one place and a row's keys stand in the same blocks
whether anything is shared or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psyfast.plan.forest import ROOT, Forest, IntArray

PAGE_SLOTS = 64


@dataclass(frozen=True)
class PageTables:
    """CSR tables of a batch, all int64; a slot is page · S + position mod S.

    slots_T: where each token's K and V are written. qo_indptr: [segments + 1], a segment's rows. kv_indptr,
    kv_indices: its pages in order of position. kv_last_page_len: filled slots of its last page. first_position: of
    its first row. copy_from, copy_to: slots to copy once the tokens are written (the heads of forked pages).
    """

    num_pages: int
    slots_T: IntArray
    qo_indptr: IntArray
    kv_indptr: IntArray
    kv_indices: IntArray
    kv_last_page_len: IntArray
    first_position: IntArray
    copy_from: IntArray
    copy_to: IntArray


def build_pages(forest: Forest) -> PageTables:
    """Give every segment pages of its own after those that it shares with its ancestors."""
    slots: list[IntArray] = []
    page_lists: list[IntArray] = []
    copy_from: list[IntArray] = []
    copy_to: list[IntArray] = []
    num_pages = 0
    for segment in forest.segments:
        first_page, last_page = segment.start // PAGE_SLOTS, (segment.stop - 1) // PAGE_SLOTS
        own = np.arange(num_pages, num_pages + last_page - first_page + 1)
        num_pages += len(own)
        inherited = page_lists[segment.parent][:first_page] if segment.parent != ROOT else own[:0]
        page_lists.append(np.concatenate([inherited, own]))
        positions = np.arange(segment.start, segment.stop)
        slots.append(own[positions // PAGE_SLOTS - first_page] * PAGE_SLOTS + positions % PAGE_SLOTS)
        head = _written_slots(forest, slots, segment.parent, first_page * PAGE_SLOTS, segment.start)
        copy_from.append(head)
        copy_to.append(own[0] * PAGE_SLOTS + np.arange(len(head)))
    return PageTables(
        num_pages=num_pages,
        slots_T=joined(slots),
        qo_indptr=_indptr([len(segment.ids) for segment in forest.segments]),
        kv_indptr=_indptr([len(pages) for pages in page_lists]),
        kv_indices=joined(page_lists),
        kv_last_page_len=np.array([(s.stop - 1) % PAGE_SLOTS + 1 for s in forest.segments], np.int64),
        first_position=np.array([s.start for s in forest.segments], np.int64),
        copy_from=joined(copy_from),
        copy_to=joined(copy_to),
    )


def _written_slots(forest: Forest, slots: list[IntArray], segment_idx: int, start: int, stop: int) -> IntArray:
    """Slots that the tokens at positions [start, stop) of a segment's path were written to (never a copy's)."""
    parts: list[IntArray] = []
    while start < stop:
        segment = forest.segments[segment_idx]
        own_start = max(start, segment.start)
        if own_start < stop:
            parts.append(slots[segment_idx][own_start - segment.start : stop - segment.start])
            stop = own_start
        segment_idx = segment.parent
    return joined(parts[::-1])


def joined(arrays: list[IntArray]) -> IntArray:
    """Concatenation as int64, empty for an empty list."""
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)


def _indptr(lengths: list[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
