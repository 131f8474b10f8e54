"""linear_nll's tile sizes and compile options: what its launch and its ahead-of-time builds have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from psyfast.kernels.triton.build import FUSION

BLOCK_V = 1024  # tokens a partial result: with the tile sizes, what defines the bits
MERGED_ROWS = 4


@dataclass(frozen=True)
class HeadTiles:
    """Sizes of the partials' tiles (rows, tokens, inner dimension) and of the gathered product's (rows, inner)."""

    rows: int
    tokens: int
    inner: int
    num_warps: int
    num_stages: int
    gathered_rows: int
    descriptors: bool = False  # TMA, where strides allow it
    halves: bool = False  # whether the products leave the accumulator in two parts


def head_tiles(capability: int, dtype: torch.dtype) -> HeadTiles:
    """What launch and ahead-of-time build are made with, for one generation and operand type."""
    if dtype == torch.float32:  # FMA units: operands and sums all in registers
        return HeadTiles(64, 64, 16, num_warps=4, num_stages=3, gathered_rows=16)
    if capability >= 120:  # 99 KiB of shared memory
        return HeadTiles(128, 128, 64, num_warps=8, num_stages=3, gathered_rows=64, descriptors=True)
    if capability >= 100:
        return HeadTiles(128, 256, 64, num_warps=8, num_stages=3, gathered_rows=64, descriptors=True, halves=True)
    if capability >= 90:
        return HeadTiles(128, 256, 64, num_warps=8, num_stages=4, gathered_rows=64, descriptors=True, halves=True)
    return HeadTiles(128, 128, 64, num_warps=8, num_stages=4, gathered_rows=64)


def group(tiles: HeadTiles, D: int) -> int:
    """Tiles of rows that stay in L2 together: about 16 MiB of y (an H100 has 50 MiB of L2)."""
    return 16 if tiles.rows * D * 2 * 16 <= 1 << 24 else 8


def gathered_options(tiles: HeadTiles) -> dict[str, Any]:
    """Of the gathered product."""
    return {"ROWS": tiles.gathered_rows, "INNER": tiles.inner, "num_warps": 4, "num_stages": 3, **FUSION}


def partials_options(tiles: HeadTiles) -> dict[str, Any]:
    """Of the partials."""
    return {
        "ROWS": tiles.rows, "TOKENS": tiles.tokens, "INNER": tiles.inner, "BLOCK": BLOCK_V, "HALVES": tiles.halves,
        "num_warps": tiles.num_warps, "num_stages": tiles.num_stages, **FUSION,
    }  # fmt: skip


def merged_options(blocks: int, slots: int) -> dict[str, Any]:
    """Of the merge, for so many blocks of the vocabulary and slots a row."""
    return {
        "ROWS": MERGED_ROWS,
        "BLOCKS": triton.next_power_of_2(blocks),
        "SLOTS": triton.next_power_of_2(slots),
        "num_warps": 4,
        "num_stages": 1,
        **FUSION,
    }
