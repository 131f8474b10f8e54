"""linear_nll: scores of N rows under an LM head of V tokens, never [N, V].

    z[n, v] = cap(scale · y[n] · W[v])      cap(z) = c · tanh(z / c)      nll = lse_v z − z[target]      H = lse_v z − Σ p z

y [N, D] and W [V, D] in bf16, fp16 or fp32; z and all sums fp32. Three kernels:

1. gathered: z of a row's target and options, [N, 1 + K]: the rows' tile times the gathered rows of W, its diagonal;
2. partials: a tile of rows × a block of BLOCK_V tokens: an online log-sum-exp in base 2, for the block alone;
3. merged: a row's blocks in one fixed tree.

1 and 2 multiply the same operands in the same order of D by the same instruction, so a token's logit has the same bits in
both, and so have equal rows of W: ties are seen as ties. A row's bits hang on its values, the head and the tile sizes alone.

Base 2: L = log2 e, m = max z · L, d = z · L − m (one fused operation), S = Σ 2^d, T = Σ 2^d d. Then with all blocks at one m
    nll = ln 2 · (log2 S + m − z[target] · L)       H = ln 2 · (log2 S − T / S)
A NaN or +inf among the logits makes S NaN, and only they do; −inf adds nothing.

Sizes that change with the batch are not specialised: no batch waits for a compilation, and 1 stays a number.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from psyfast.kernels.triton.build import Build, build_of
from psyfast.kernels.triton.elementary import tanh
from psyfast.kernels.triton.head_tiles import (
    BLOCK_V,
    MERGED_ROWS,
    gathered_options,
    group,
    head_tiles,
    merged_options,
    partials_options,
)
from psyfast.kernels.triton.launch import capability_of, num_programs, type_name

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e38)  # below every m that occurs; finite, so that differences are
NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def _logit(product, scale, soft_cap, HAS_SCALE: tl.constexpr, HAS_CAP: tl.constexpr):
    z = product
    if HAS_SCALE:
        z = z * scale
    if HAS_CAP:
        z = soft_cap * tanh(z / soft_cap)
    return z


@triton.jit(do_not_specialize=["N", "slots"])
def gathered_kernel(
    y,  # [N, D]
    w,  # [V, D]
    ids,  # [N, slots] int64, −1 for none
    logits,  # [N, slots] fp32
    N,
    D,
    slots,
    scale,
    soft_cap,
    HAS_SCALE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    EVEN_D: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """One slot of ROWS rows: [ROWS, D] · [ROWS gathered, D]ᵀ, of which the diagonal is wanted."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    slot = tl.program_id(1)
    at = rows.to(tl.int64) * slots + slot
    token = tl.maximum(tl.load(ids + at, mask=rows < N, other=0), 0)
    y_rows = y + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * D
    w_rows = w + token[:, None] * D
    product = tl.zeros([ROWS, ROWS], tl.float32)
    for start in tl.range(0, D, INNER):
        inner = start + tl.arange(0, INNER)[None, :]
        if EVEN_D:
            a, b = tl.load(y_rows + inner), tl.load(w_rows + inner)
        else:
            a, b = (
                tl.load(y_rows + inner, mask=inner < D, other=0.0),
                tl.load(w_rows + inner, mask=inner < D, other=0.0),
            )
        product = tl.dot(a, b.T, product, input_precision="ieee")
    own = tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]
    diagonal = tl.sum(tl.where(own, product, 0.0), 1)  # one term beside zeros: exact
    tl.store(logits + at, _logit(diagonal, scale, soft_cap, HAS_SCALE, HAS_CAP), mask=rows < N)


@triton.jit
def _fold(z, start, V, target, target_z, m, s, t, largest, first, ahead):
    """A block's sums so far with a tile of logits [rows, tokens from start on]: see the head of this file."""
    tokens = start + tl.arange(0, z.shape[1])[None, :]
    if start + z.shape[1] > V:
        z = tl.where(tokens < V, z, float("-inf"))
    tile_largest = tl.max(z, 1)  # NaN left out: S tells of it
    tile_first = tl.min(tl.where(z == tile_largest[:, None], tokens, NO_TOKEN), 1)
    first = tl.where(tile_largest > largest, tile_first, first)
    earlier = (z == target_z[:, None]) & (tokens < target[:, None])
    ahead += tl.sum(((z > target_z[:, None]) | earlier).to(tl.int32), 1)

    new_m = tl.maximum(m, tile_largest * LOG2E)
    step = m - new_m
    shrink = tl.exp2(step)
    d = tl.fma(z, LOG2E, -new_m[:, None])
    p = tl.exp2(d)
    t = tl.fma(s, step, t) * shrink + tl.sum(p * tl.maximum(d, LOWEST), 1)  # 0 · −inf would be NaN
    s = s * shrink + tl.sum(p, 1)
    return new_m, s, t, tl.maximum(largest, tile_largest), first, ahead


@triton.jit(do_not_specialize=["N", "V", "slots"])
def partials_kernel(
    y,  # [N, D], or its descriptor
    w,  # [V, D], or its descriptor
    ids,  # [N, slots]: the target first
    logits,  # [N, slots]
    reals,  # [4, N, blocks] fp32: m, S, T, largest z
    counts,  # [2, N, blocks] int32: first token of the largest z, tokens ahead of the target
    N,
    V,
    D,
    slots,
    scale,
    soft_cap,
    HAS_SCALE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    EVEN_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,
):
    """A persistent grid over (tile of rows, block of tokens), GROUP tiles of rows going through the blocks together: the
    programs at work share few tiles of y and of W in L2.

    A block's tiles and their steps over D are one loop, so that the next tile's first operands are on their way while
    the logits of this one are folded.
    """
    row_tiles = tl.cdiv(N, ROWS)
    blocks = tl.cdiv(V, BLOCK)
    for item in tl.range(tl.program_id(0), row_tiles * blocks, tl.num_programs(0)):
        first_tile = item // (GROUP * blocks) * GROUP
        in_group = tl.minimum(row_tiles - first_tile, GROUP)
        within = item - first_tile * blocks
        row_start = (first_tile + within % in_group) * ROWS
        block = within // in_group
        rows = row_start + tl.arange(0, ROWS)
        slot = rows.to(tl.int64) * slots
        target = tl.load(ids + slot, mask=rows < N, other=0).to(tl.int32)
        target_z = tl.load(logits + slot, mask=rows < N, other=0.0)

        m = tl.full([ROWS], LOWEST, tl.float32)
        s = tl.zeros([ROWS], tl.float32)
        t = tl.zeros([ROWS], tl.float32)
        largest = tl.full([ROWS], float("-inf"), tl.float32)
        first = tl.full([ROWS], 0, tl.int32) + block * BLOCK
        ahead = tl.zeros([ROWS], tl.int32)
        inner_tiles = tl.cdiv(D, INNER)
        steps = tl.cdiv(tl.minimum(BLOCK, V - block * BLOCK), TOKENS) * inner_tiles
        product = tl.zeros([ROWS, TOKENS], tl.float32)
        for step in tl.range(0, steps):
            start = block * BLOCK + step // inner_tiles * TOKENS
            k = step % inner_tiles * INNER
            if DESCRIPTORS:  # beyond an edge TMA reads zeros
                a, b = y.load([row_start, k]), w.load([start, k])
            else:
                inner = k + tl.arange(0, INNER)[None, :]
                y_rows = y + tl.minimum(rows, N - 1).to(tl.int64)[:, None] * D
                w_rows = w + tl.minimum(start + tl.arange(0, TOKENS), V - 1).to(tl.int64)[:, None] * D
                if EVEN_D:
                    a, b = tl.load(y_rows + inner), tl.load(w_rows + inner)
                else:
                    a = tl.load(y_rows + inner, mask=inner < D, other=0.0)
                    b = tl.load(w_rows + inner, mask=inner < D, other=0.0)
            product = tl.dot(a, b.T, product, input_precision="ieee")
            if k + INNER >= D:
                if HALVES:
                    left, right = tl.split(tl.permute(tl.reshape(product, [ROWS, 2, TOKENS // 2]), [0, 2, 1]))
                    z = _logit(left, scale, soft_cap, HAS_SCALE, HAS_CAP)
                    m, s, t, largest, first, ahead = _fold(
                        z, start, V, target, target_z, m, s, t, largest, first, ahead
                    )
                    z = _logit(right, scale, soft_cap, HAS_SCALE, HAS_CAP)
                    m, s, t, largest, first, ahead = _fold(
                        z, start + TOKENS // 2, V, target, target_z, m, s, t, largest, first, ahead
                    )
                else:
                    z = _logit(product, scale, soft_cap, HAS_SCALE, HAS_CAP)
                    m, s, t, largest, first, ahead = _fold(
                        z, start, V, target, target_z, m, s, t, largest, first, ahead
                    )
                product = tl.zeros([ROWS, TOKENS], tl.float32)

        at = rows.to(tl.int64) * blocks + block
        plane = N.to(tl.int64) * blocks
        kept = rows < N
        tl.store(reals + at, m, mask=kept)
        tl.store(reals + plane + at, s, mask=kept)
        tl.store(reals + 2 * plane + at, t, mask=kept)
        tl.store(reals + 3 * plane + at, largest, mask=kept)
        tl.store(counts + at, first, mask=kept)
        tl.store(counts + plane + at, ahead, mask=kept)


@triton.jit(do_not_specialize=["N", "blocks", "slots"])
def merged_kernel(
    ids,  # [N, slots]
    logits,  # [N, slots]
    reals,  # [4, N, blocks]
    counts,  # [2, N, blocks]
    nll,  # [N, slots] fp32: the target's, then the options'
    entropy,  # [N] fp32
    argmax,  # [N] int64
    rank,  # [N] int64
    N,
    blocks,
    slots,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """ROWS rows, all of their blocks and slots at once."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = rows.to(tl.int64)
    block = tl.arange(0, BLOCKS)[None, :]
    kept = (rows < N)[:, None] & (block < blocks)
    at = row[:, None] * blocks + block
    plane = N.to(tl.int64) * blocks
    m = tl.load(reals + at, mask=kept, other=LOWEST)
    s = tl.load(reals + plane + at, mask=kept, other=0.0)
    t = tl.load(reals + 2 * plane + at, mask=kept, other=0.0)
    z = tl.load(reals + 3 * plane + at, mask=kept, other=float("-inf"))
    first = tl.load(counts + at, mask=kept, other=NO_TOKEN)
    ahead = tl.load(counts + plane + at, mask=kept, other=0)

    all_m = tl.max(m, 1)
    step = m - all_m[:, None]
    shrink = tl.exp2(step)
    all_s = tl.sum(s * shrink, 1)
    all_t = tl.sum(tl.fma(s, step, t) * shrink, 1)
    usable = (all_s > 0.0) & (all_s < float("inf"))  # neither holds for NaN
    nan = float("nan")
    log2_s = tl.log2(all_s)
    tl.store(entropy + row, tl.where(usable, (log2_s - all_t / all_s) * LN2, nan), mask=rows < N)
    token = tl.min(tl.where(z == tl.max(z, 1)[:, None], first, NO_TOKEN), 1)
    tl.store(argmax + row, tl.where(usable, token, -1).to(tl.int64), mask=rows < N)
    tl.store(rank + row, tl.where(usable, tl.sum(ahead, 1), -1).to(tl.int64), mask=rows < N)

    slot = tl.arange(0, SLOTS)[None, :]
    at_slot = row[:, None] * slots + slot
    kept = (rows < N)[:, None] & (slot < slots)
    own_z = tl.load(logits + at_slot, mask=kept, other=0.0)
    known = tl.load(ids + at_slot, mask=kept, other=-1) >= 0
    own_nll = (log2_s[:, None] + tl.fma(-own_z, LOG2E, all_m[:, None])) * LN2
    tl.store(nll + at_slot, tl.where(known & usable[:, None], own_nll, nan), mask=kept)


def linear_nll(
    y_ND: Tensor,
    lm_head_VD: Tensor,
    target_N: Tensor,
    option_ids_NK: Tensor,
    *,
    scale: float = 1.0,
    soft_cap: float | None = None,
    capability: int | None = None,
    programs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(nll_N, argmax_N, rank_N, entropy_N, option_nll_NK) as psyfast.ops.records.HeadScores defines them.

    capability: of another generation than the device's, for tests; so is `programs`, the size of the persistent grid.
    """
    (N, D), V, slots = y_ND.shape, lm_head_VD.shape[0], 1 + option_ids_NK.shape[1]
    capability = capability_of(y_ND) if capability is None else capability
    tiles = head_tiles(capability, y_ND.dtype)
    blocks = triton.cdiv(V, BLOCK_V)
    ids_NS = torch.cat([target_N[:, None], option_ids_NK], 1)
    logits_NS, nll_NS = (y_ND.new_empty(N, slots, dtype=torch.float32) for _ in range(2))
    reals = y_ND.new_empty(4, N, blocks, dtype=torch.float32)
    counts = y_ND.new_empty(2, N, blocks, dtype=torch.int32)
    entropy_N = y_ND.new_empty(N, dtype=torch.float32)
    argmax_N, rank_N = (y_ND.new_empty(N, dtype=torch.int64) for _ in range(2))
    if N > 0:
        traits = {"HAS_SCALE": scale != 1.0, "HAS_CAP": soft_cap is not None}
        numbers = (float(scale), 1.0 if soft_cap is None else float(soft_cap))
        shared = {**traits, "EVEN_D": D % tiles.inner == 0}
        gathered_kernel[(triton.cdiv(N, tiles.gathered_rows), slots)](
            y_ND, lm_head_VD, ids_NS, logits_NS, N, D, slots, *numbers, **shared, **gathered_options(tiles)
        )
        descriptors = tiles.descriptors and _described(y_ND) and _described(lm_head_VD)
        y, w = y_ND, lm_head_VD
        if descriptors:
            y = TensorDescriptor.from_tensor(y_ND, [tiles.rows, tiles.inner])
            w = TensorDescriptor.from_tensor(lm_head_VD, [tiles.tokens, tiles.inner])
        items = triton.cdiv(N, tiles.rows) * blocks
        grid = min(items, num_programs(y_ND) if programs is None else programs)
        partials_kernel[(grid,)](
            y, w, ids_NS, logits_NS, reals, counts, N, V, D, slots, *numbers,
            **shared, DESCRIPTORS=descriptors, GROUP=group(tiles, D), **partials_options(tiles),
        )  # fmt: skip
        merged_kernel[(triton.cdiv(N, MERGED_ROWS),)](
            ids_NS, logits_NS, reals, counts, nll_NS, entropy_N, argmax_N, rank_N, N, blocks, slots,
            **merged_options(blocks, slots),
        )  # fmt: skip
    return nll_NS[:, 0].contiguous(), argmax_N, rank_N, entropy_N, nll_NS[:, 1:].contiguous()


def _described(rows: Tensor) -> bool:
    return rows.data_ptr() % 16 == 0 and rows.stride(0) * rows.element_size() % 16 == 0


_NUMBERS = {"N": "i32", "V": "i32", "D": "i32", "slots": "i32", "scale": "fp32", "soft_cap": "fp32"}

# Shapes of Llama-3.2-1B: what the builds of the merge and of L2's grouping are made for.
_BUILT_VOCABULARY, _BUILT_HIDDEN, _BUILT_SLOTS = 128_256, 2048, 1


def builds(capability: int) -> Iterator[Build]:
    """Every operand type, with soft cap and scale (the most registers) and without."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        tiles, name = head_tiles(capability, dtype), type_name(dtype)
        for traits, label in (
            ({"HAS_SCALE": False, "HAS_CAP": False}, ""),
            ({"HAS_SCALE": True, "HAS_CAP": True}, "/cap"),
        ):
            traits["EVEN_D"] = True
            yield build_of(
                gathered_kernel,
                f"linear_nll/gathered/{name}{label}",
                {"y": f"*{name}", "w": f"*{name}", "ids": "*i64", "logits": "*fp32", **_NUMBERS},
                {**traits, **gathered_options(tiles)},
            )
            y, w = f"*{name}", f"*{name}"
            if tiles.descriptors:
                y = f"tensordesc<{name}[{tiles.rows}, {tiles.inner}]>"
                w = f"tensordesc<{name}[{tiles.tokens}, {tiles.inner}]>"
            yield build_of(
                partials_kernel,
                f"linear_nll/partials/{name}{label}",
                {"y": y, "w": w, "ids": "*i64", "logits": "*fp32", "reals": "*fp32", "counts": "*i32", **_NUMBERS},
                {
                    **traits,
                    "DESCRIPTORS": tiles.descriptors,
                    "GROUP": group(tiles, _BUILT_HIDDEN),
                    **partials_options(tiles),
                },
            )
    pointers = {
        "ids": "*i64",
        "logits": "*fp32",
        "reals": "*fp32",
        "counts": "*i32",
        "nll": "*fp32",
        "entropy": "*fp32",
    }
    yield build_of(
        merged_kernel,
        "linear_nll/merged",
        {**pointers, "argmax": "*i64", "rank": "*i64", "N": "i32", "blocks": "i32", "slots": "i32"},
        merged_options(triton.cdiv(_BUILT_VOCABULARY, BLOCK_V), _BUILT_SLOTS),
    )
