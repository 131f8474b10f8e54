"""attention: every query row over the keys of its path, tile by tile of psyfast.ops.gpu.tiles, in one launch.

    s[r, c] = cap(scale · q[r] · k[c]) · log2 e     p = 2^(s − m)     o[r] = Σ p v[c] / Σ p     over the keys c that r sees

q [T, H, E], K and V in pages [P, KV heads, 64, E], all bf16, fp16 or fp32; s, sums and o's accumulator in fp32, p rounded to
the operand type for its product with v. m is the largest s so far (online softmax, Milakov and Gimelshein 2018; the walk over blocks
is FlashAttention-2's, Dao 2023), a sink begins it and adds 1 to Σ p.

A key block is KEYS positions at an absolute multiple, one page or two, gathered by page id. A block that a row does not see
leaves m, Σ p and o as they are, to the bit: m is finite from the start, so p is exactly 0 and the old sums are multiplied by 2^0.
So a row's bits depend on its keys and KEYS alone. Blocks that all rows of a tile see need no mask: a loop of their own.

Heads of 80 and 96 are multiplied as 64 + 16 and 64 + 32 columns: nothing is padded. fp32 goes through the FMA units, whose
operands are all in registers: so there a block is taken SPAN keys at a time, and q·k in steps of INNER columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psyfast.kernels.triton.build import FUSION, Build, build_of
from psyfast.kernels.triton.elementary import tanh
from psyfast.kernels.triton.launch import capability_of, type_name

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e38)

HEAD_DIMS = (64, 80, 96, 128, 256)


@dataclass(frozen=True)
class AttentionShape:
    """A tile's query rows, a key block's pages, and how a program is built."""

    query_rows: int
    key_pages: int
    num_warps: int
    num_stages: int


SPAN_FP32, INNER_FP32 = 16, 16


def attention_shape(capability: int, dtype: torch.dtype, head_dim: int) -> AttentionShape:
    """What tiles, launch and ahead-of-time build are made with, for one generation, operand type and head size."""
    if dtype == torch.float32:
        return AttentionShape(
            32 if head_dim < 128 else 16, 1, num_warps=8 if head_dim in (96, 256) else 4, num_stages=1
        )
    if capability in (90, 100):  # warpgroups of 64 rows; on sm_100 sums of 128 x 256 leave no registers
        if head_dim > 128:
            return AttentionShape(64 if capability == 100 else 128, 1, num_warps=8, num_stages=2)
        return AttentionShape(128, 2, num_warps=8, num_stages=2)
    if head_dim > 128:
        return AttentionShape(32, 1, num_warps=8, num_stages=2)
    num_stages = 2 if capability == 120 or head_dim in (80, 96) else 3  # 99 KiB of shared memory; registers
    return AttentionShape(128 if head_dim == 64 else 64, 1, num_warps=8, num_stages=num_stages)


def tile_shape(head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
    """(query_rows, key_pages) on the current device; in the interpreter those of the oldest generation."""
    capability = 80
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        capability = 10 * major + minor
    shape = attention_shape(capability, dtype, head_dim)
    return shape.query_rows, shape.key_pages


@triton.jit
def _scores(q_rows, own, q0, q1, k, at, HEAD: tl.constexpr, WIDE: tl.constexpr, INNER: tl.constexpr):
    """Q · k of a tile's rows and some keys; INNER: columns a step, q read again for each; 0: q is in registers."""
    TAIL: tl.constexpr = HEAD - WIDE
    if INNER > 0:
        s = tl.zeros([q_rows.shape[0], at.shape[0]], tl.float32)
        for start in tl.range(0, HEAD, INNER):
            column = start + tl.arange(0, INNER)[None, :]
            a = tl.load(q_rows + column, mask=own[:, None], other=0.0)
            s = tl.dot(a, tl.load(k + at + column).T, s, input_precision="ieee")
    else:
        s = tl.dot(q0, tl.load(k + at + tl.arange(0, WIDE)[None, :]).T, input_precision="ieee")
        if TAIL > 0:
            s = tl.dot(q1, tl.load(k + at + WIDE + tl.arange(0, TAIL)[None, :]).T, s, input_precision="ieee")
    return s


@triton.jit
def _fold(
    part,
    q_rows,
    own,
    q0,
    q1,
    o0,
    o1,
    m,
    total,
    k,
    v,
    kv_head,
    num_kv_heads,
    rows,
    positions,
    index,
    pages,
    block_rows,
    scale,
    soft_cap,
    window,
    MASKED: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD: tl.constexpr,
    WIDE: tl.constexpr,
    KEY_PAGES: tl.constexpr,
    SPAN: tl.constexpr,
    INNER: tl.constexpr,
):
    """A tile's sums with SPAN keys more: a key block, or a part of one."""
    PARTS: tl.constexpr = KEY_PAGES * 64 // SPAN
    TAIL: tl.constexpr = HEAD - WIDE
    block = part // PARTS
    slot = part % PARTS * SPAN + tl.arange(0, SPAN)
    page = tl.load(pages + block * KEY_PAGES + slot // 64)
    at = ((page.to(tl.int64) * num_kv_heads + kv_head) * 64 + slot % 64)[:, None] * HEAD
    s = _scores(q_rows, own, q0, q1, k, at, HEAD, WIDE, INNER)
    s = tanh(s * (scale / soft_cap)) * (soft_cap * LOG2E) if HAS_CAP else s * (scale * LOG2E)
    if MASKED:
        key = tl.load(index + block) * (KEY_PAGES * 64) + slot
        seen = key[None, :] <= positions[:, None]
        if HAS_WINDOW:
            seen &= key[None, :] > (positions - window)[:, None]
        first, stop = tl.load(block_rows + 2 * block), tl.load(block_rows + 2 * block + 1)
        seen &= ((rows >= first) & (rows < stop))[:, None]
        s = tl.where(seen, s, float("-inf"))
    new_m = tl.maximum(m, tl.max(s, 1))
    shrink = tl.exp2(m - new_m)
    p = tl.exp2(s - new_m[:, None])
    total = total * shrink + tl.sum(p, 1)
    p = p.to(v.dtype.element_ty)
    o0 = tl.dot(p, tl.load(v + at + tl.arange(0, WIDE)[None, :]), o0 * shrink[:, None], input_precision="ieee")
    if TAIL > 0:
        tail = WIDE + tl.arange(0, TAIL)[None, :]
        o1 = tl.dot(p, tl.load(v + at + tail), o1 * shrink[:, None], input_precision="ieee")
    return o0, o1, new_m, total


@triton.jit
def attention_kernel(
    q,  # [T, H, E]
    k,  # [P, KV heads, 64, E]
    v,  # [P, KV heads, 64, E]
    o,  # [T, H, E]
    positions,  # [T] int64
    tile_rows,  # [tiles, 2] int32
    bounds,  # [tiles, 4] int32
    index,  # [blocks] int32
    pages,  # [blocks, KEY_PAGES] int32
    block_rows,  # [blocks, 2] int32
    sinks,  # [H] fp32
    H,
    num_kv_heads,
    scale,
    soft_cap,
    window,
    HAS_CAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HEAD: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    KEY_PAGES: tl.constexpr,
    SPAN: tl.constexpr,
    INNER: tl.constexpr,
):
    """One tile and head a program. Tiles stand with the most blocks first, and a tile's heads follow one another, so that
    the longest begin first and heads of a group find K and V in L2.
    """
    TAIL: tl.constexpr = HEAD - WIDE
    TAIL_COLUMNS: tl.constexpr = TAIL if TAIL > 0 else 16
    tile = tl.program_id(0) // H
    head = tl.program_id(0) % H
    kv_head = head // (H // num_kv_heads)
    row_start, row_stop = tl.load(tile_rows + 2 * tile), tl.load(tile_rows + 2 * tile + 1)
    rows = row_start + tl.arange(0, ROWS)
    own = rows < row_stop
    position = tl.load(positions + rows, mask=own, other=0).to(tl.int32)
    at = (rows.to(tl.int64) * H + head)[:, None] * HEAD
    wide = tl.arange(0, WIDE)[None, :]
    tail = WIDE + tl.arange(0, TAIL_COLUMNS)[None, :]
    q_rows = q + at
    q0, q1 = 0.0, 0.0
    if INNER == 0:
        q0 = tl.load(q_rows + wide, mask=own[:, None], other=0.0)
        if TAIL > 0:
            q1 = tl.load(q_rows + tail, mask=own[:, None], other=0.0)

    o0 = tl.zeros([ROWS, WIDE], tl.float32)
    o1 = tl.zeros([ROWS, TAIL_COLUMNS], tl.float32)
    m = tl.full([ROWS], LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        m = tl.maximum(m, tl.load(sinks + head) * LOG2E)
        total += 1.0
    start, full_start = tl.load(bounds + 4 * tile), tl.load(bounds + 4 * tile + 1)
    full_stop, stop = tl.load(bounds + 4 * tile + 2), tl.load(bounds + 4 * tile + 3)
    PARTS: tl.constexpr = KEY_PAGES * 64 // SPAN
    for part in tl.range(start * PARTS, full_start * PARTS):
        o0, o1, m, total = _fold(
            part, q_rows, own, q0, q1, o0, o1, m, total, k, v, kv_head, num_kv_heads, rows, position, index, pages,
            block_rows, scale, soft_cap, window, True, HAS_CAP, HAS_WINDOW, HEAD, WIDE, KEY_PAGES, SPAN, INNER,
        )  # fmt: skip
    for part in tl.range(full_start * PARTS, full_stop * PARTS):
        o0, o1, m, total = _fold(
            part, q_rows, own, q0, q1, o0, o1, m, total, k, v, kv_head, num_kv_heads, rows, position, index, pages,
            block_rows, scale, soft_cap, window, False, HAS_CAP, HAS_WINDOW, HEAD, WIDE, KEY_PAGES, SPAN, INNER,
        )  # fmt: skip
    for part in tl.range(full_stop * PARTS, stop * PARTS):
        o0, o1, m, total = _fold(
            part, q_rows, own, q0, q1, o0, o1, m, total, k, v, kv_head, num_kv_heads, rows, position, index, pages,
            block_rows, scale, soft_cap, window, True, HAS_CAP, HAS_WINDOW, HEAD, WIDE, KEY_PAGES, SPAN, INNER,
        )  # fmt: skip
    total = tl.where(own, total, 1.0)[:, None]
    tl.store(o + at + wide, (o0 / total).to(o.dtype.element_ty), mask=own[:, None])
    if TAIL > 0:
        tl.store(o + at + tail, (o1 / total).to(o.dtype.element_ty), mask=own[:, None])


def attention(
    q_THE: Tensor,
    kv_PKSE: tuple[Tensor, Tensor],
    positions_T: Tensor,
    tiles: Any,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks_H: Tensor | None = None,
    capability: int | None = None,
) -> Tensor:
    """o_T(HE) in q's type. tiles: a psyfast.ops.gpu.kernel_set.AttentionTiles, of `tile_shape`'s rows and pages.

    capability: of another generation than the device's, for tests.
    """
    T, H, E = q_THE.shape
    k_PKSE, v_PKSE = kv_PKSE
    capability = capability_of(q_THE) if capability is None else capability
    shape = attention_shape(capability, q_THE.dtype, E)
    assert (tiles.query_rows, tiles.key_pages) == (shape.query_rows, shape.key_pages)
    o_TO = torch.empty_like(q_THE).view(T, H * E)
    num_tiles = tiles.rows_I2.shape[0]
    if num_tiles > 0:
        attention_kernel[(num_tiles * H,)](
            q_THE, k_PKSE, v_PKSE, o_TO, positions_T, tiles.rows_I2, tiles.bounds_I4, tiles.index_B, tiles.pages_BJ,
            tiles.block_rows_B2, positions_T if sinks_H is None else sinks_H, H, k_PKSE.shape[1],
            float(scale), 1.0 if soft_cap is None else float(soft_cap), 0 if window is None else window,
            **_traits(soft_cap is not None, window is not None, sinks_H is not None), **_options(shape, q_THE.dtype, E),
        )  # fmt: skip
    return o_TO


def _traits(has_cap: bool, has_window: bool, has_sinks: bool) -> dict[str, bool]:
    return {"HAS_CAP": has_cap, "HAS_WINDOW": has_window, "HAS_SINKS": has_sinks}


def _options(shape: AttentionShape, dtype: torch.dtype, head_dim: int) -> dict[str, Any]:
    is_fp32 = dtype == torch.float32
    return {
        "HEAD": head_dim, "WIDE": 1 << (head_dim.bit_length() - 1), "ROWS": shape.query_rows,
        "KEY_PAGES": shape.key_pages, "SPAN": SPAN_FP32 if is_fp32 else 64 * shape.key_pages,
        "INNER": INNER_FP32 if is_fp32 else 0, "num_warps": shape.num_warps, "num_stages": shape.num_stages, **FUSION,
    }  # fmt: skip


def builds(capability: int) -> Iterator[Build]:
    """Every operand type and head size, plain; heads of 128 and 256 also with everything there is (the most registers)."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = type_name(dtype)
        types = dict.fromkeys("qkvo", f"*{name}")
        types |= dict.fromkeys(("tile_rows", "bounds", "index", "pages", "block_rows"), "*i32")
        types |= {"positions": "*i64", "sinks": "*fp32", "scale": "fp32", "soft_cap": "fp32"}
        types |= dict.fromkeys(("H", "num_kv_heads", "window"), "i32")
        for head_dim in HEAD_DIMS:
            shape = attention_shape(capability, dtype, head_dim)
            for everything in (False, True) if head_dim >= 128 else (False,):
                yield build_of(
                    attention_kernel,
                    f"attention/{name}/{head_dim}" + ("/all" if everything else ""),
                    types if everything else {**types, "sinks": "*i64"},
                    {**_traits(everything, everything, everything), **_options(shape, dtype, head_dim)},
                    sizes=(),
                )
