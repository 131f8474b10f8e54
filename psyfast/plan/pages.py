"""Pages: where the keys and values of a forest's tokens lie, as CSR tables (letters: P pages, S slots a page).

Page j of a segment's list holds positions S·j … S·j + S − 1 of its path. A segment that begins inside a page starts
with a copy of that page's head, so that a page is read from one place and a row's keys stand in the same blocks
whether anything is shared or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psyfast.plan.forest import ROOT, IntArray, Segment, TokenIds

PAGE_SLOTS = 64


@dataclass(frozen=True)
class PageTables:
    """CSR tables of a batch, all int64; a slot is page · S + position mod S.

    Segments stand in the order of a walk through the trees: each subtree in one piece, the parent before its forks,
    the forks by position (at one position, and roots, in the order they were added). So the branches of a trunk follow
    one another along it, and neighbours read the same pages as far as any two segments do. A segment's own pages are
    consecutive.

    slots_T: where each token's K and V are written. qo_indptr: [segments + 1], a segment's rows. kv_indptr,
    kv_indices: its pages in order of position. kv_last_page_len: filled slots of its last page. first_position: of
    its first row. copy_from, copy_to: slots to copy once the tokens are written (the heads of forked pages).
    copy_runs: the same copies in the same order as [runs, 4], a row (page_from, page_to, slot_start, slot_stop): the
    slots [slot_start, slot_stop) inside the one page go to the same place inside the other.
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
    copy_runs: IntArray


def num_slots(segments: Sequence[Segment]) -> int:
    """Page slots that segments take: whole pages, the one of each fork again."""
    return PAGE_SLOTS * sum((s.stop - 1) // PAGE_SLOTS - s.start // PAGE_SLOTS + 1 for s in segments)


def build_pages(segments: Sequence[Segment]) -> PageTables:
    """Give every segment pages of its own after those that it shares with its ancestors, which stand before it."""
    slots: list[IntArray] = []
    page_lists: list[IntArray] = []
    copy_runs: list[tuple[int, int, int, int]] = []
    num_pages = 0
    for segment in segments:
        first_page, last_page = segment.start // PAGE_SLOTS, (segment.stop - 1) // PAGE_SLOTS
        own = np.arange(num_pages, num_pages + last_page - first_page + 1)
        num_pages += len(own)
        inherited = page_lists[segment.parent][:first_page] if segment.parent != ROOT else own[:0]
        page_lists.append(np.concatenate([inherited, own]))
        positions = np.arange(segment.start, segment.stop)
        slots.append(own[positions // PAGE_SLOTS - first_page] * PAGE_SLOTS + positions % PAGE_SLOTS)
        for page_from, start, stop in _written_runs(segments, page_lists, segment):
            copy_runs.append((page_from, int(own[0]), start, stop))
    return PageTables(
        num_pages=num_pages,
        slots_T=joined(slots),
        qo_indptr=indptr_of([len(segment.ids) for segment in segments]),
        kv_indptr=indptr_of([len(pages) for pages in page_lists]),
        kv_indices=joined(page_lists),
        kv_last_page_len=np.array([(s.stop - 1) % PAGE_SLOTS + 1 for s in segments], np.int64),
        first_position=np.array([s.start for s in segments], np.int64),
        copy_from=joined([page_from * PAGE_SLOTS + np.arange(*slots) for page_from, _, *slots in copy_runs]),
        copy_to=joined([page_to * PAGE_SLOTS + np.arange(*slots) for _, page_to, *slots in copy_runs]),
        copy_runs=np.array(copy_runs, np.int64).reshape(len(copy_runs), 4),
    )


def _written_runs(
    segments: Sequence[Segment], page_lists: Sequence[IntArray], fork: Segment
) -> list[tuple[int, int, int]]:
    """(page, first slot, slot after the last) of the head of a fork's first page: where it was written, never a copy."""
    runs: list[tuple[int, int, int]] = []
    page_idx = fork.start // PAGE_SLOTS
    page_start, stop = page_idx * PAGE_SLOTS, fork.start
    segment_idx = fork.parent
    while page_start < stop:
        own_start = max(page_start, segments[segment_idx].start)
        if own_start < stop:
            runs.append((int(page_lists[segment_idx][page_idx]), own_start - page_start, stop - page_start))
            stop = own_start
        segment_idx = segments[segment_idx].parent
    return runs[::-1]


def joined(arrays: Sequence[TokenIds]) -> IntArray:
    """Concatenation as int64, empty for an empty list."""
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)


def indptr_of(lengths: Sequence[int]) -> IntArray:
    """Where runs of such lengths begin, one after another, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
