"""The work of delta_rule as chunks, pieces and groups (DeltaPlan in kernel_set.py), planned on the host once a batch.

    position    0              64             128            192
    segment 0   |---- chunk ----|---- chunk ----|--- chunk --|
    segment 1                        known rows |aaaa|bbbbbb-|        begins at 140: from the state at 128, 12 rows of segment 0 again

Chunks stand between fixed positions of a path, so a segment that begins inside of one computes its ancestors' rows there
again. A piece is a run of a segment's chunks; its level is one more than that of the piece whose state it starts from. Pieces
of a level are independent: they make groups, as many as the memory between the kernels lets, and groups run one after the other.

Letters: N chunks, P pieces, S segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from psyfast.errors import BackendError
from psyfast.ops.gpu.checks import HostTables, Int64Array, check_tables
from psyfast.ops.gpu.kernel_set import CHUNK_ROWS, DeltaGroup, DeltaPlan
from psyfast.ops.paths import rows_before
from psyfast.ops.records import Pages

PIECE_CHUNKS = 64
"""The longest piece: of long paths several then go side by side, where the memory does not hold them whole."""


@dataclass(frozen=True)
class _Chunks:
    """All segments' chunks, in order. source_N: the chunk whose state a chunk starts from, −1: none."""

    rows_N64: Int64Array
    known_N: Int64Array
    segment_N: Int64Array
    source_N: Int64Array


def delta_plan_of(pages: Pages, max_chunks: int) -> DeltaPlan:
    """The plan of a batch, on its device, made at the first call. Raises BackendError for tables that do not fit."""
    key = ("delta_plan", max_chunks)
    if key not in pages.derived:
        tables = HostTables.of(pages)
        check_tables(tables)
        before_T = rows_before(pages).cpu().numpy()
        check_paths(tables.positions, before_T)
        pages.derived[key] = plan_delta(tables, before_T, max_chunks).to(pages.k.device)
    plan: DeltaPlan = pages.derived[key]
    return plan


def check_paths(positions: Int64Array, before_T: Int64Array) -> None:
    """BackendError unless every row but a path's first follows an earlier row, which stands one position before it."""
    follows = positions > 0
    before = before_T[follows]
    fits = (before >= 0) & (before < np.flatnonzero(follows))
    fits &= positions[np.where(fits, before, 0)] == positions[follows] - 1
    if not fits.all():
        row = int(np.flatnonzero(follows)[int(fits.argmin())])
        raise BackendError(
            f"row {row} stands at position {positions[row]}, expected an earlier row at {positions[row] - 1} on its path, "
            f"got {before_T[row]}; a state has no gaps: check the batch's plan"
        )


def plan_delta(tables: HostTables, before_T: Int64Array, max_chunks: int) -> DeltaPlan:
    """Of checked tables, on the CPU. max_chunks: the most of a group. Group bounds hang on sizes alone, bits on neither."""
    chunks = _cut(tables, before_T)
    pieces = _pieces(chunks, min(PIECE_CHUNKS, max_chunks))
    groups = _groups(pieces, _levels(chunks, pieces), max_chunks)
    order = [chunk for group in groups for start, stop in group for chunk in range(start, stop)]
    number_N, source_P, num_states = _numbered(chunks, groups)

    def tensor(array: Int64Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int32))

    lengths_P = [stop - start for group in groups for start, stop in group]
    stops_P = np.cumsum(lengths_P, dtype=np.int64)
    return DeltaPlan(
        rows_N64=tensor(chunks.rows_N64[order]),
        chunks_N2=tensor(np.stack([chunks.known_N[order], number_N[order]], axis=1)),
        pieces_P3=tensor(np.stack([stops_P - lengths_P, stops_P, source_P], axis=1)),
        groups=tuple(_bounds(groups)),
        num_states=num_states,
    )


def _cut(tables: HostTables, before_T: Int64Array) -> _Chunks:
    """Every segment's rows at their places, behind the rows of its path that share its first chunk."""
    filled = np.diff(tables.qo_indptr) > 0
    first_S, stop_S = tables.qo_indptr[:-1][filled], tables.qo_indptr[1:][filled]
    known_S = tables.positions[first_S] % CHUNK_ROWS
    known_rows_S64 = np.full((len(first_S), CHUNK_ROWS), -1, np.int64)
    row_S = before_T[first_S]
    for step in range(1, CHUNK_ROWS):
        (inside,) = np.nonzero(known_S >= step)
        known_rows_S64[inside, known_S[inside] - step] = row_S[inside]
        row_S[inside] = before_T[row_S[inside]]
    counts_S = -(-(known_S + stop_S - first_S) // CHUNK_ROWS)
    starts_S = np.cumsum(counts_S) - counts_S
    segment_N = np.repeat(np.arange(len(first_S)), counts_S)
    place_N64 = (np.arange(len(segment_N)) - starts_S[segment_N])[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)
    own_N64 = place_N64 - known_S[segment_N][:, None]
    known_N64 = known_rows_S64[segment_N[:, None], np.minimum(place_N64, CHUNK_ROWS - 1)]
    rows_N64 = np.where(own_N64 < 0, known_N64, first_S[segment_N][:, None] + own_N64)
    rows_N64[rows_N64 >= stop_S[segment_N][:, None]] = -1
    source_N = np.arange(len(segment_N)) - 1
    owner_S = np.searchsorted(first_S, row_S, side="right") - 1  # of the row at the border, −1 where there is none
    chunk_S = starts_S[owner_S] + (known_S[owner_S] + row_S - first_S[owner_S]) // CHUNK_ROWS
    source_N[starts_S] = np.where(row_S < 0, -1, chunk_S)
    known_N = np.where(np.arange(len(segment_N)) == starts_S[segment_N], known_S[segment_N], 0)
    return _Chunks(rows_N64, known_N, segment_N, source_N)


def _pieces(chunks: _Chunks, size: int) -> list[tuple[int, int]]:
    """Runs of a segment's chunks, (first, the one after the last), in order."""
    found: list[tuple[int, int]] = []
    firsts = np.flatnonzero(np.diff(chunks.segment_N, prepend=-1)).tolist()
    for first, stop in pairwise([*firsts, len(chunks.segment_N)]):
        found += [(start, min(start + size, stop)) for start in range(first, stop, size)]
    return found


def _levels(chunks: _Chunks, pieces: Sequence[tuple[int, int]]) -> list[int]:
    """For each piece how many others must be done before it. A source is in a piece with a lower index."""
    stops = np.array([stop for _, stop in pieces])
    levels: list[int] = []
    for start, _ in pieces:
        source = int(chunks.source_N[start])
        levels.append(0 if source < 0 else 1 + levels[int(np.searchsorted(stops, source, side="right"))])
    return levels


def _groups(pieces: Sequence[tuple[int, int]], levels: Sequence[int], max_chunks: int) -> list[list[tuple[int, int]]]:
    """Pieces by level, the longest first, cut where the next one would be one chunk too many."""
    groups: list[list[tuple[int, int]]] = []
    count, level = 0, -1
    for place in sorted(range(len(pieces)), key=lambda place: (levels[place], pieces[place][0] - pieces[place][1])):
        start, stop = pieces[place]
        if levels[place] != level or count + stop - start > max_chunks:
            groups.append([])
            count, level = 0, levels[place]
        groups[-1].append((start, stop))
        count += stop - start
    return groups


def _numbered(chunks: _Chunks, groups: Sequence[Sequence[tuple[int, int]]]) -> tuple[Int64Array, Int64Array, int]:
    """Under which number each chunk's state is kept (−1: it is not), each piece's source, and how many numbers there are.

    A number is free again behind the last group that reads it.
    """
    sources = [[int(chunks.source_N[start]) for start, _ in group] for group in groups]
    last_reader = {source: place for place, group in enumerate(sources) for source in group if source >= 0}
    number_N = np.full(len(chunks.segment_N), -1, np.int64)
    source_P: list[int] = []
    free: list[int] = []
    num_states = 0
    for place, group in enumerate(groups):
        source_P += [int(number_N[source]) if source >= 0 else -1 for source in sources[place]]
        for start, stop in group:
            for chunk in range(start, stop):
                if chunk in last_reader:
                    if not free:
                        free.append(num_states)
                        num_states += 1
                    number_N[chunk] = free.pop()
        read = {source for source in sources[place] if last_reader.get(source) == place}
        free += [int(number_N[source]) for source in sorted(read)]
    return number_N, np.array(source_P, np.int64), num_states


def _bounds(groups: Sequence[Sequence[tuple[int, int]]]) -> list[DeltaGroup]:
    """Where each group's pieces and chunks stand in the plan."""
    found: list[DeltaGroup] = []
    piece = chunk = 0
    for group in groups:
        count = sum(stop - start for start, stop in group)
        found.append(DeltaGroup(piece, len(group), chunk, count))
        piece, chunk = piece + len(group), chunk + count
    return found
