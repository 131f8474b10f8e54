"""The work of attention as tiles (AttentionTiles in kernel_set.py), planned on the host once a batch.

    rows   | segment 0, long      |  1  |  2 |   3   |            segments 1 to 3 fork off segment 0
    tiles  | r |  Q   |  Q   | Q  |      one tile    |            Q = query_rows, r = what Q leaves of the segment's rows

A tile's cost is the number of its key blocks. So a long segment begins with its ragged tile, whose rows see the
fewest keys, and short segments join a tile while they fit: a block that all of them read is listed once, one that some
read once for every run of such rows.

Letters: I tiles, B key blocks, J pages a block; "piece": the rows that a segment has in a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from psyfast.ops.gpu.checks import HostTables, Int64Array, check_tables
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS, AttentionTiles
from psyfast.ops.records import Pages


@dataclass(frozen=True)
class _Pieces:
    """Rows [start, stop) of a segment in a tile, in order."""

    start: Int64Array
    stop: Int64Array
    segment: Int64Array
    tile: Int64Array


@dataclass(frozen=True)
class _Blocks:
    """Key blocks in the order of their tiles, ascending within each; rows_B2: the run of rows that reads a block."""

    tile_B: Int64Array
    index_B: Int64Array
    pages_BJ: Int64Array
    rows_B2: Int64Array


def tiles_of(pages: Pages, query_rows: int, key_pages: int, window: int | None) -> AttentionTiles:
    """The tiles of a batch, on its device, planned at the first call. Raises BackendError for tables that do not fit."""
    tables = pages.derived.get("host_tables")
    if tables is None:
        tables = pages.derived["host_tables"] = HostTables.of(pages)
        check_tables(tables)
    key = ("attention_tiles", query_rows, key_pages, window)
    if key not in pages.derived:
        pages.derived[key] = plan_tiles(tables, query_rows, key_pages, window).to(pages.k.device)
    tiles: AttentionTiles = pages.derived[key]
    return tiles


def plan_tiles(tables: HostTables, query_rows: int, key_pages: int, window: int | None) -> AttentionTiles:
    """Tiles of checked tables, on the CPU. window: the last so many positions that a row sees; None: all."""
    pieces = _cut_rows(tables.qo_indptr, query_rows)
    num_tiles = int(pieces.tile[-1]) + 1 if len(pieces.tile) else 0
    firsts = np.searchsorted(pieces.tile, np.arange(num_tiles + 1))
    rows_I2 = np.stack([pieces.start[firsts[:-1]], pieces.stop[firsts[1:] - 1]], axis=1)
    blocks = _joined(_blocks_of_pieces(tables, pieces, key_pages, window))
    bounds_I4 = _bounds(tables.positions, rows_I2, blocks, key_pages * PAGE_SLOTS, window)
    by_cost = np.argsort(bounds_I4[:, 0] - bounds_I4[:, 3], kind="stable")

    def tensor(array: Int64Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int32))

    return AttentionTiles(
        query_rows=query_rows,
        key_pages=key_pages,
        rows_I2=tensor(rows_I2[by_cost]),
        bounds_I4=tensor(bounds_I4[by_cost]),
        index_B=tensor(blocks.index_B),
        pages_BJ=tensor(blocks.pages_BJ),
        block_rows_B2=tensor(blocks.rows_B2),
    )


def _cut_rows(qo_indptr: Int64Array, query_rows: int) -> _Pieces:
    """Segments' rows cut into tiles: the ragged tile of each first, in the tile before it where it fits."""
    found: list[tuple[int, int, int, int]] = []
    tile, free = -1, 0
    bounds = qo_indptr.tolist()
    for segment, (start, stop) in enumerate(pairwise(bounds)):
        size = (stop - start) % query_rows or query_rows
        while start < stop:
            if size > free:
                tile, free = tile + 1, query_rows
            found.append((start, start + size, segment, tile))
            start, free, size = start + size, free - size, query_rows
    start_A, stop_A, segment_A, tile_A = np.array(found, np.int64).reshape(-1, 4).T
    return _Pieces(start_A, stop_A, segment_A, tile_A)


def _blocks_of_pieces(tables: HostTables, pieces: _Pieces, key_pages: int, window: int | None) -> _Blocks:
    """Every block that some row of a piece sees, piece by piece."""
    slots = key_pages * PAGE_SLOTS
    earliest = np.zeros(len(pieces.start), np.int64)
    if window is not None:
        earliest = np.maximum(0, tables.positions[pieces.start] - window + 1)
    first, last = earliest // slots, tables.positions[pieces.stop - 1] // slots
    counts = last - first + 1
    piece_B = np.repeat(np.arange(len(counts)), counts)
    index_B = np.arange(len(piece_B)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    path_start = tables.kv_indptr[pieces.segment][piece_B]
    path_last = tables.kv_indptr[pieces.segment + 1][piece_B] - 1
    places_BJ = (path_start + index_B * key_pages)[:, None] + np.arange(key_pages)
    return _Blocks(
        tile_B=pieces.tile[piece_B],
        index_B=index_B,
        pages_BJ=tables.kv_indices[np.minimum(places_BJ, path_last[:, None])],
        rows_B2=np.stack([pieces.start[piece_B], pieces.stop[piece_B]], axis=1),
    )


def _joined(blocks: _Blocks) -> _Blocks:
    """Blocks sorted by tile and index, those of the same pages joined where one's rows follow the other's.

    Paths are those of a tree, so equal blocks are those with an equal last page; if not, less is joined.
    """
    if not len(blocks.tile_B):
        return blocks
    key_B = blocks.tile_B * (blocks.index_B.max() + 1) + blocks.index_B
    order = np.lexsort((blocks.rows_B2[:, 0], blocks.pages_BJ[:, -1], key_B))
    key_B, pages_BJ, rows_B2 = key_B[order], blocks.pages_BJ[order], blocks.rows_B2[order]
    follows_B = np.zeros(len(order), bool)
    follows_B[1:] = (
        (key_B[1:] == key_B[:-1]) & (pages_BJ[1:] == pages_BJ[:-1]).all(axis=1) & (rows_B2[1:, 0] == rows_B2[:-1, 1])
    )
    firsts = np.flatnonzero(~follows_B)
    lasts = np.append(firsts[1:], len(order)) - 1
    kept = order[firsts]
    return _Blocks(
        tile_B=blocks.tile_B[kept],
        index_B=blocks.index_B[kept],
        pages_BJ=pages_BJ[firsts],
        rows_B2=np.stack([rows_B2[firsts, 0], rows_B2[lasts, 1]], axis=1),
    )


def _bounds(positions: Int64Array, rows_I2: Int64Array, blocks: _Blocks, slots: int, window: int | None) -> Int64Array:
    """(start, full_start, full_stop, stop) of each tile's blocks; full: the first blocks in a row that hide nothing."""
    num_tiles, num_blocks = len(rows_I2), len(blocks.tile_B)
    indptr = np.searchsorted(blocks.tile_B, np.arange(num_tiles + 1))
    bounds_I4 = np.stack([indptr[:-1], indptr[:-1], indptr[:-1], indptr[1:]], axis=1)
    if not num_tiles:
        return bounds_I4
    lengths = rows_I2[:, 1] - rows_I2[:, 0]
    # Tiles stand in the order of their rows and cover them all, so they cut the positions into consecutive runs.
    earliest_I = np.minimum.reduceat(positions, rows_I2[:, 0])
    latest_I = np.maximum.reduceat(positions, rows_I2[:, 0])
    tile_B = blocks.tile_B
    full_B = (blocks.rows_B2[:, 1] - blocks.rows_B2[:, 0]) == lengths[tile_B]
    full_B &= (blocks.index_B + 1) * slots - 1 <= earliest_I[tile_B]
    if window is not None:
        full_B &= blocks.index_B * slots > latest_I[tile_B] - window
    places = np.arange(num_blocks + 1)
    next_full = _next(places, np.append(full_B, True))
    next_other = _next(places, np.append(~full_B, True))
    starts = next_full[indptr[:-1]]
    has_full = starts < indptr[1:]
    stops = np.minimum(next_other[starts], indptr[1:])
    bounds_I4[:, 1] = np.where(has_full, starts, indptr[:-1])
    bounds_I4[:, 2] = np.where(has_full, stops, indptr[:-1])
    return bounds_I4


def _next(places: Int64Array, holds: NDArray[np.bool_]) -> Int64Array:
    """For every place the first one from there on where something holds; it holds at the last."""
    return np.minimum.accumulate(np.where(holds, places, places[-1])[::-1])[::-1]
