"""heads: what stands between attn_in's projection and attention, one pass over memory.

    x = qkv + bias       q, k: x / sqrt(mean(x²) + eps) · w, over each head alone or over all heads of a token together
    pair (i, i + R):     x_i cos − x_{i+R} sin,  x_{i+R} cos + x_i sin           i < R ≤ E / 2; the rest of a head stays

q goes out in the operand type, k and v into their pages. T tokens, H query heads, K kv heads, E head dimension, R rotated
pairs. A program has some thousand elements of consecutive heads; arithmetic is fp32. A head's bits hang on itself (or its
token's heads) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psyfast.kernels.triton.build import FUSION, Build, build_of
from psyfast.kernels.triton.launch import type_name
from psyfast.kernels.triton.rows import RowNorm, row_options

PAGE_SLOTS = tl.constexpr(64)

_TILE = 2048  # elements a program has


@triton.jit
def _inverse(row, bias, column, kept, eps, HAS_BIAS: tl.constexpr, width: tl.constexpr):
    x = tl.load(row + column, mask=(column < width) & kept[:, None], other=0.0)
    if HAS_BIAS:
        x += tl.load(bias + column, mask=column < width, other=0.0)
    return tl.rsqrt(tl.sum(x * x, 1) / width + eps)


@triton.jit(do_not_specialize=["T"])
def together_kernel(
    qkv,  # [T, (H + 2K) · E] fp32
    bias,  # [(H + 2K) · E] fp32
    inverses,  # [T, 2] fp32: of q and of k
    q_eps,
    k_eps,
    T,
    HAS_BIAS: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """1 / sqrt(mean + eps) of a row's query heads together, and of its key heads together."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)[None, :]
    row = qkv + rows.to(tl.int64)[:, None] * ((HEADS + 2 * KV_HEADS) * E)
    kept = rows < T
    if HEADS > 0:
        inverse = _inverse(row, bias, column, kept, q_eps, HAS_BIAS, HEADS * E)
        tl.store(inverses + rows * 2, inverse, mask=kept)
    if KV_HEADS > 0:
        inverse = _inverse(row + HEADS * E, bias + HEADS * E, column, kept, k_eps, HAS_BIAS, KV_HEADS * E)
        tl.store(inverses + rows * 2 + 1, inverse, mask=kept)


@triton.jit
def _head_part(
    qkv, bias, q_weight, k_weight, row, head, first: tl.constexpr, size: tl.constexpr, SIZE: tl.constexpr,
    kept, HAS_BIAS: tl.constexpr, NORM: tl.constexpr,
    Q_OFFSET: tl.constexpr, K_OFFSET: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Dimensions [first, first + size) of heads, bias added, and the weights of their norms (1 where there is none)."""
    e = first + tl.arange(0, SIZE)[None, :]
    inside = tl.arange(0, SIZE)[None, :] < size
    mask = kept[:, None] & inside
    x = tl.load(qkv + row.to(tl.int64)[:, None] * E + e, mask=mask, other=0.0)
    if HAS_BIAS:
        x += tl.load(bias + head[:, None] * E + e, mask=mask, other=0.0)
    w = tl.full([1, SIZE], 1.0, tl.float32)
    of_q, of_k = (head < HEADS)[:, None], ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
    if NORM == 1:  # a weight for all heads
        wq = tl.load(q_weight + e, mask=inside, other=0.0)
        wk = tl.load(k_weight + e, mask=inside, other=0.0)
        w = tl.where(of_q, wq + Q_OFFSET, wk + K_OFFSET)
    if NORM == 2:  # a weight a head
        wq = tl.load(q_weight + head[:, None] * E + e, mask=mask & of_q, other=0.0)
        wk = tl.load(k_weight + (head - HEADS)[:, None] * E + e, mask=mask & of_k, other=0.0)
        w = tl.where(of_q, wq + Q_OFFSET, wk + K_OFFSET)
    return x, w


@triton.jit
def _store_part(
    x, q, k_pages, v_pages, token, head, slot, first: tl.constexpr, size: tl.constexpr, SIZE: tl.constexpr, kept,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Q [T, H, E]; pages [P, K, 64, E]."""
    e = first + tl.arange(0, SIZE)[None, :]
    mask = kept[:, None] & (tl.arange(0, SIZE)[None, :] < size)
    if HEADS > 0:
        at = (token.to(tl.int64) * HEADS + head)[:, None] * E + e
        tl.store(q + at, x.to(q.dtype.element_ty), mask=mask & (head < HEADS)[:, None])
    if KV_HEADS > 0:
        page, place = slot // PAGE_SLOTS, slot % PAGE_SLOTS
        kv_head = (head - HEADS) % KV_HEADS
        at = ((page * KV_HEADS + kv_head) * PAGE_SLOTS + place)[:, None] * E + e
        of_v = head >= HEADS + KV_HEADS
        value = x.to(k_pages.dtype.element_ty)
        tl.store(k_pages + at, value, mask=mask & ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None])
        tl.store(v_pages + at, value, mask=mask & of_v[:, None])


@triton.jit(do_not_specialize=["T"])
def heads_kernel(
    qkv,  # [T, (H + 2K), E] fp32
    bias,  # [(H + 2K) · E] fp32
    q_weight,  # [E] or [H · E] fp32
    k_weight,  # [E] or [K · E] fp32
    inverses,  # [T, 2] fp32, of norms over all heads together
    cos,  # [positions, R] fp32
    sin,
    positions,  # [T] int64
    slots,  # [T] int64
    q,  # [T, H, E], the operand type
    k_pages,  # [P, K, 64, E]
    v_pages,
    q_eps,
    k_eps,
    T,
    HAS_BIAS: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    TOGETHER: tl.constexpr,
    Q_OFFSET: tl.constexpr,
    K_OFFSET: tl.constexpr,
    ROTATED: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    E: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """A row here is a head of a token: its dimensions are [0, R), [R, 2R), whose pairs turn, and the rest."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total: tl.constexpr = HEADS + 2 * KV_HEADS
    kept = row < T * total
    token, head = row // total, row % total
    of_q, of_k = head < HEADS, (head >= HEADS) & (head < HEADS + KV_HEADS)
    NORM: tl.constexpr = 0 if not (Q_NORM or K_NORM) else (2 if TOGETHER else 1)
    rest: tl.constexpr = E - 2 * PAIRS
    a, wa = _head_part(qkv, bias, q_weight, k_weight, row, head, 0, PAIRS, HALF,
                       kept, HAS_BIAS, NORM, Q_OFFSET, K_OFFSET, HEADS, KV_HEADS, E)  # fmt: skip
    b, wb = _head_part(qkv, bias, q_weight, k_weight, row, head, PAIRS, PAIRS, HALF,
                       kept, HAS_BIAS, NORM, Q_OFFSET, K_OFFSET, HEADS, KV_HEADS, E)  # fmt: skip
    squares = tl.sum(a * a, 1) + tl.sum(b * b, 1)
    if rest > 0:
        c, wc = _head_part(qkv, bias, q_weight, k_weight, row, head, 2 * PAIRS, rest, REST,
                           kept, HAS_BIAS, NORM, Q_OFFSET, K_OFFSET, HEADS, KV_HEADS, E)  # fmt: skip
        squares += tl.sum(c * c, 1)
    normed = ((of_q & Q_NORM) | (of_k & K_NORM))[:, None]
    if NORM > 0:
        if NORM == 2:
            inverse = tl.load(inverses + token * 2 + tl.where(of_q, 0, 1), mask=kept, other=0.0)
        else:
            inverse = tl.rsqrt(squares / E + tl.where(of_q, q_eps, k_eps))
        a = tl.where(normed, a * inverse[:, None] * wa, a)
        b = tl.where(normed, b * inverse[:, None] * wb, b)
        if rest > 0:
            c = tl.where(normed, c * inverse[:, None] * wc, c)
    if ROTATED:
        pair = tl.arange(0, HALF)[None, :]
        angle = tl.load(positions + token, mask=kept, other=0)[:, None] * PAIRS + pair
        turned = kept & (of_q | of_k)
        cos_a = tl.load(cos + angle, mask=turned[:, None] & (pair < PAIRS), other=0.0)
        sin_a = tl.load(sin + angle, mask=turned[:, None] & (pair < PAIRS), other=0.0)
        new_a = tl.where(turned[:, None], a * cos_a - b * sin_a, a)
        b = tl.where(turned[:, None], b * cos_a + a * sin_a, b)
        a = new_a
    slot = tl.full([ROWS], 0, tl.int64)
    if KV_HEADS > 0:
        slot = tl.load(slots + token, mask=kept & (head >= HEADS), other=0)
    _store_part(a, q, k_pages, v_pages, token, head, slot, 0, PAIRS, HALF, kept, HEADS, KV_HEADS, E)
    _store_part(b, q, k_pages, v_pages, token, head, slot, PAIRS, PAIRS, HALF, kept, HEADS, KV_HEADS, E)
    if rest > 0:
        _store_part(c, q, k_pages, v_pages, token, head, slot, 2 * PAIRS, rest, REST, kept, HEADS, KV_HEADS, E)


def heads(
    qkv_TC: Tensor,
    head_counts: tuple[int, int],
    head_dim: int,
    bias: Tensor | None,
    q_norm: RowNorm | None,
    k_norm: RowNorm | None,
    norm_heads_together: bool,
    cos_sin: tuple[Tensor, Tensor] | None,
    positions_T: Tensor,
    slots_T: Tensor | None,
    kv_PKSE: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
) -> Tensor:
    """As psyfast.ops.gpu.kernel_set.DeviceKernels.heads; head_counts: (H, K)."""
    (H, K), E, T = head_counts, head_dim, qkv_TC.shape[0]
    q_THE = torch.empty(T, H, E, dtype=dtype, device=qkv_TC.device)
    if T == 0 or H + 2 * K == 0:
        return q_THE
    q_weight, k_weight = (qkv_TC if norm is None else norm.weight for norm in (q_norm, k_norm))
    q_eps, k_eps = (0.0 if norm is None else norm.eps for norm in (q_norm, k_norm))
    shape = {"HEADS": H, "KV_HEADS": K, "E": E, "HAS_BIAS": bias is not None}
    bias_C = qkv_TC if bias is None else bias
    inverses = qkv_TC
    if norm_heads_together and (q_norm or k_norm):
        inverses = torch.empty(T, 2, dtype=torch.float32, device=qkv_TC.device)
        options = row_options(max(H, K) * E)
        together_kernel[(triton.cdiv(T, options["ROWS"]),)](
            qkv_TC, bias_C, inverses, q_eps, k_eps, T, **shape, **options
        )
    cos, sin = (qkv_TC, qkv_TC) if cos_sin is None else cos_sin
    k_pages, v_pages = (q_THE, q_THE) if kv_PKSE is None else kv_PKSE
    options = head_options(E, None if cos_sin is None else cos.shape[1])
    heads_kernel[(triton.cdiv(T * (H + 2 * K), options["ROWS"]),)](
        qkv_TC, bias_C, q_weight, k_weight, inverses, cos, sin,
        positions_T, positions_T if slots_T is None else slots_T, q_THE, k_pages, v_pages, q_eps, k_eps, T,
        Q_NORM=q_norm is not None, K_NORM=k_norm is not None, TOGETHER=norm_heads_together,
        Q_OFFSET=_offset(q_norm), K_OFFSET=_offset(k_norm), **shape, **options,
    )  # fmt: skip
    return q_THE


def _offset(norm: RowNorm | None) -> float:
    return 1.0 if norm is not None and norm.unit_offset else 0.0


def head_options(head_dim: int, pairs: int | None) -> dict[str, Any]:
    """Heads a program; not rotated: two halves all the same."""
    half = head_dim // 2 if pairs is None else pairs
    rest = head_dim - 2 * half
    return {
        "ROTATED": pairs is not None, "PAIRS": half, "ROWS": max(1, _TILE // triton.next_power_of_2(head_dim)),
        "HALF": triton.next_power_of_2(max(1, half)), "REST": triton.next_power_of_2(max(1, rest)),
        "num_warps": 4, "num_stages": 1, **FUSION,
    }  # fmt: skip


_TYPES = {
    "qkv": "*fp32", "bias": "*fp32", "q_weight": "*fp32", "k_weight": "*fp32", "inverses": "*fp32", "cos": "*fp32",
    "sin": "*fp32", "positions": "*i64", "slots": "*i64", "q_eps": "fp32", "k_eps": "fp32", "T": "i32",
}  # fmt: skip


def builds(capability: int) -> Iterator[Build]:
    """Every head dimension of attention with all that can be done to a head; the same for all generations."""
    del capability
    for dtype in (torch.bfloat16, torch.float32):
        name = type_name(dtype)
        types = {**_TYPES, **dict.fromkeys(("q", "k_pages", "v_pages"), f"*{name}")}
        for E in (64, 80, 96, 128, 256):
            shape = {"HEADS": 32, "KV_HEADS": 8, "E": E, "HAS_BIAS": True}
            norms = {"Q_NORM": True, "K_NORM": True, "TOGETHER": False, "Q_OFFSET": 1.0, "K_OFFSET": 1.0}
            options = {**shape, **norms, **head_options(E, E // 2)}
            yield build_of(heads_kernel, f"heads/{name}/{E}", types, options)
    shape = {"HEADS": 128, "KV_HEADS": 128, "E": 128, "HAS_BIAS": True}
    yield build_of(together_kernel, "heads/together/16384", _TYPES, {**shape, **row_options(128 * 128)})
