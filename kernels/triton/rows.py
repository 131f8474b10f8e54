"""The element-wise parts of attn_in, attn_out and mlp, each one pass over memory.

    norm_rows   y = x / sqrt(mean(x²) + eps) · w, rounded to the operand type
    copy_slots  runs of slots from page to page
    add_rows    x += norm(y + bias)
    gated       h = act(gate) · up

T tokens, D hidden, F feed-forward width, K kv heads, E head dimension. Arithmetic is fp32. A row is summed within one program
in a tree that hangs on the row's width alone. All of it is bound by memory: a thread moves 16 bytes at a time, tiles hold
some thousand elements. (The part between the projection and attention is heads.py.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from psyfast.kernels.triton.build import FUSION, Build, build_of
from psyfast.kernels.triton.elementary import tanh
from psyfast.kernels.triton.launch import type_name

PAGE_SLOTS = tl.constexpr(64)
LOG2E = tl.constexpr(1.4426950408889634)
SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)

_TILE = 2048  # elements a program has at least, where there are as many
_ELEMENTS_A_THREAD = 32
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}


class RowNorm(Protocol):
    """RMSNorm with its weight in fp32, as psyfast.ops.gpu.kernel_set.DeviceNorm."""

    @property
    def weight(self) -> Tensor:
        """fp32."""

    @property
    def eps(self) -> float:
        """Added to the mean square."""

    @property
    def unit_offset(self) -> bool:
        """Whether 1 is added to the weight."""


@triton.jit
def _normed(x, weight, at, mask, eps, width, UNIT_OFFSET: tl.constexpr):
    """Rows of x [rows, width], beyond the width zeros."""
    inverse = tl.rsqrt(tl.sum(x * x, 1) / width + eps)
    w = tl.load(weight + at, mask=mask, other=0.0)
    if UNIT_OFFSET:
        w += 1.0
    return x * inverse[:, None] * w


@triton.jit(do_not_specialize=["T"])
def norm_kernel(
    x,  # [T, D] fp32
    y,  # [T, D], the operand type
    weight,  # [D] fp32
    eps,
    T,
    D,
    HAS_NORM: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """ROWS whole rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    at = rows.to(tl.int64) * D + column
    kept = (rows < T) & (column < D)
    value = tl.load(x + at, mask=kept, other=0.0)
    if HAS_NORM:
        value = _normed(value, weight, column, column < D, eps, D, UNIT_OFFSET)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["T"])
def add_kernel(
    x,  # [T, D] fp32, changed in place
    y,  # [T, D] fp32
    bias,  # [D] fp32
    weight,  # [D] fp32
    eps,
    T,
    D,
    HAS_BIAS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """ROWS whole rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    at = rows.to(tl.int64) * D + column
    kept = (rows < T) & (column < D)
    value = tl.load(y + at, mask=kept, other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + column, mask=column < D, other=0.0)
    if HAS_NORM:
        value = _normed(value, weight, column, column < D, eps, D, UNIT_OFFSET)
    tl.store(x + at, tl.load(x + at, mask=kept, other=0.0) + value, mask=kept)


@triton.jit(do_not_specialize=["T"])
def gated_kernel(
    gate_up,  # [T, 2F] fp32, gate first
    h,  # [T, F], the operand type
    T,
    F,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """ROWS rows × WIDTH columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    kept = (rows < T) & (column < F)
    at = rows.to(tl.int64) * (2 * F) + column
    x = tl.load(gate_up + at, mask=kept, other=0.0)
    up = tl.load(gate_up + F + at, mask=kept, other=0.0)
    if ACTIVATION == 0:  # x · σ(x)
        act = x / (1.0 + tl.exp2(-x * LOG2E))
    elif ACTIVATION == 1:  # x · Φ(x)
        act = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    else:
        act = 0.5 * x * (1.0 + tanh((x + 0.044715 * x * x * x) * SQRT_2_OVER_PI))
    tl.store(h + rows.to(tl.int64) * F + column, (act * up).to(h.dtype.element_ty), mask=kept)


@triton.jit
def copy_kernel(
    k_pages,  # [P, K, 64, E]
    v_pages,
    runs,  # [runs, 4] int64: page from, page to, first slot, slot after the last
    KV_HEADS: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One head of one run: a page of K and of V, masked to the run's slots."""
    run = runs + tl.program_id(0) * 4
    slot, e = tl.arange(0, PAGE_SLOTS)[:, None], tl.arange(0, WIDTH)[None, :]
    kept = (slot >= tl.load(run + 2)) & (slot < tl.load(run + 3)) & (e < E)
    source = ((tl.load(run) * KV_HEADS + tl.program_id(1)) * PAGE_SLOTS + slot) * E + e
    wanted = ((tl.load(run + 1) * KV_HEADS + tl.program_id(1)) * PAGE_SLOTS + slot) * E + e
    tl.store(k_pages + wanted, tl.load(k_pages + source, mask=kept), mask=kept)
    tl.store(v_pages + wanted, tl.load(v_pages + source, mask=kept), mask=kept)


def norm_rows(x_TD: Tensor, norm: RowNorm | None, dtype: torch.dtype) -> Tensor:
    """x_TD fp32, normalised (None: as it is) and rounded to the operand type: y_TD."""
    T, D = x_TD.shape
    y_TD = torch.empty(T, D, dtype=dtype, device=x_TD.device)
    options = row_options(D)
    if T > 0:
        norm_kernel[(triton.cdiv(T, options["ROWS"]),)](
            x_TD, y_TD, x_TD if norm is None else norm.weight, 0.0 if norm is None else norm.eps, T, D,
            HAS_NORM=norm is not None, UNIT_OFFSET=norm is not None and norm.unit_offset, **options,
        )  # fmt: skip
    return y_TD


def add_rows(x_TD: Tensor, y_TD: Tensor, bias_D: Tensor | None, norm: RowNorm | None) -> None:
    """X += norm(y + bias), in place, all fp32."""
    T, D = x_TD.shape
    options = row_options(D)
    if T > 0:
        add_kernel[(triton.cdiv(T, options["ROWS"]),)](
            x_TD, y_TD, y_TD if bias_D is None else bias_D, y_TD if norm is None else norm.weight,
            0.0 if norm is None else norm.eps, T, D,
            HAS_BIAS=bias_D is not None, HAS_NORM=norm is not None,
            UNIT_OFFSET=norm is not None and norm.unit_offset, **options,
        )  # fmt: skip


def gated(gate_up_TG: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
    """act(gate) · up of [T, 2F] fp32, gate first, rounded to the operand type: h_TF."""
    T, F = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
    h_TF = torch.empty(T, F, dtype=dtype, device=gate_up_TG.device)
    options = row_options(min(F, _TILE))
    grid = (triton.cdiv(T, options["ROWS"]), triton.cdiv(F, options["WIDTH"]))
    if T > 0:
        gated_kernel[grid](gate_up_TG, h_TF, T, F, ACTIVATION=_ACTIVATIONS[activation], **options)
    return h_TF


def copy_slots(kv_PKSE: tuple[Tensor, Tensor], runs_R4: Tensor) -> None:
    """Copies slots inside pages, K and V: int64 rows (page from, page to, first slot, slot after the last)."""
    _, K, _, E = kv_PKSE[0].shape
    if len(runs_R4) > 0 and K > 0:
        copy_kernel[(len(runs_R4), K)](*kv_PKSE, runs_R4, KV_HEADS=K, **copy_options(E))


def row_options(width: int) -> dict[str, Any]:
    """Rows a program, their width padded to a power of two, and threads for 32 elements each."""
    padded = triton.next_power_of_2(width)
    rows = max(1, _TILE // padded)
    warps = min(16, max(4, rows * padded // (32 * _ELEMENTS_A_THREAD)))
    return {"ROWS": rows, "WIDTH": padded, "num_warps": warps, "num_stages": 1, **FUSION}


def copy_options(head_dim: int) -> dict[str, Any]:
    """A page of one head."""
    padded = triton.next_power_of_2(head_dim)
    return {"E": head_dim, "WIDTH": padded, "num_warps": min(16, max(4, padded // 16)), "num_stages": 1, **FUSION}


_TYPES = {"weight": "*fp32", "bias": "*fp32", "gate_up": "*fp32", "runs": "*i64", "eps": "fp32"}
_SIZES = {"T": "i32", "D": "i32", "F": "i32"}


def builds(capability: int) -> Iterator[Build]:
    """The narrowest and the widest rows that models have, every head dimension, the same for all generations."""
    del capability
    for dtype in (torch.bfloat16, torch.float32):
        name = type_name(dtype)
        operand = dict.fromkeys(("h", "q", "k_pages", "v_pages"), f"*{name}")
        for D in (576, 4096, 16384):
            whole = {"HAS_NORM": True, "UNIT_OFFSET": True, **row_options(D)}
            types = {**_TYPES, **_SIZES, "x": "*fp32", "y": f"*{name}"}
            yield build_of(norm_kernel, f"rows/norm/{name}/{D}", types, whole)
            if dtype == torch.float32:
                types = {**types, "y": "*fp32"}
                yield build_of(add_kernel, f"rows/add/{D}", types, {"HAS_BIAS": True, **whole})
        for activation, number in _ACTIVATIONS.items():
            options = {"ACTIVATION": number, **row_options(_TILE)}
            yield build_of(
                gated_kernel, f"rows/gated/{activation}/{name}", {**_TYPES, **_SIZES, **operand}, options, ("F",)
            )
        for E in (64, 80, 96, 128, 256):
            yield build_of(
                copy_kernel, f"rows/copy/{name}/{E}", {**_TYPES, **operand}, {"KV_HEADS": 8, **copy_options(E)}
            )
