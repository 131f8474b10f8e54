"""short_convolution: what stands between delta_rule's projection and its recurrence.

    y[r] = silu(Σ_w f[w] x[row w before r on its path])     q ← y / |y| / √E     k ← y / |y|     v ← y

|y| = sqrt(Σ y² + 1e-6). T rows, C channels (q of K heads, k of K heads, v of H heads), W taps; fp32. One pass over memory: the rows of a
tile's taps are the tile's own but for the first few, and come from the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from psyfast.kernels.triton.build import FUSION, Build, build_of

LOG2E = tl.constexpr(1.4426950408889634)
L2_EPS = tl.constexpr(1e-6)

MAX_TAPS = 64
_TILE = 2048  # elements of a program


@triton.jit(do_not_specialize=["T", "first", "num_scaled"])
def convolution_kernel(
    x,  # [T, C] fp32
    path,  # [W, T] int32: the row under each tap, −1: the path had not begun
    taps,  # [W, C] fp32
    out,  # [T, C] fp32
    T,
    C,
    first,  # channel of the first head
    num_scaled,  # heads that are divided by √SIZE, too
    W: tl.constexpr,
    SIZE: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """ROWS rows of one head."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    e = tl.arange(0, WIDTH)
    channel = first + head * SIZE + e
    y = tl.zeros([ROWS, WIDTH], tl.float32)
    for tap in tl.range(0, W):
        row = tl.load(path + tap * T + rows, mask=rows < T, other=-1).to(tl.int64)
        kept = (row >= 0)[:, None] & (e < SIZE)[None, :]
        value = tl.load(x + row[:, None] * C + channel[None, :], mask=kept, other=0.0)
        y += value * tl.load(taps + tap * C + channel, mask=e < SIZE, other=0.0)[None, :]
    y = y / (1.0 + tl.exp2(-y * LOG2E))
    if UNIT:
        scale = tl.where(head < num_scaled, 1.0 / tl.sqrt(SIZE * 1.0), 1.0)
        y *= (tl.rsqrt(tl.sum(y * y, 1) + L2_EPS) * scale)[:, None]
    at = rows.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out + at, y, mask=(rows < T)[:, None] & (e < SIZE)[None, :])


def short_convolution(qkv_TC: Tensor, path_WT: Tensor, taps_WC: Tensor, sizes: Any) -> Tensor:
    """Queries, keys and values as the recurrence reads them, [T, C] fp32.

    path_WT: int32, the row that each tap reads, −1 where the path had not begun. taps_WC: fp32, in that order. sizes: a
    DeltaSizes of psyfast.ops.gpu.kernel_set.
    """
    out_TC = torch.empty_like(qkv_TC)
    (T, C), K, E, V = qkv_TC.shape, sizes.num_key_heads, sizes.key_dim, sizes.value_dim
    for first, num_heads, size, unit in ((0, 2 * K, E, True), (2 * K * E, sizes.num_value_heads, V, False)):
        options = convolution_options(len(taps_WC), size, unit)
        if T > 0:
            convolution_kernel[(triton.cdiv(T, options["ROWS"]), num_heads)](
                qkv_TC, path_WT, taps_WC, out_TC, T, C, first, K, **options
            )
    return out_TC


def convolution_options(num_taps: int, size: int, unit: bool) -> dict[str, Any]:
    """Rows a program, a head's width padded to a power of two."""
    padded = triton.next_power_of_2(size)
    return {
        "W": num_taps, "SIZE": size, "UNIT": unit, "ROWS": max(1, _TILE // padded), "WIDTH": padded, "num_warps": 4,
        "num_stages": 1, **FUSION,
    }  # fmt: skip


def builds(capability: int) -> Iterator[Build]:
    """Heads of Qwen3.5, the largest, and one that ends inside of a tile; the same for all generations."""
    del capability
    types = dict.fromkeys(("x", "taps", "out"), "*fp32") | {"path": "*i32"}
    types |= dict.fromkeys(("T", "C", "first", "num_scaled"), "i32")
    for size, unit in ((128, True), (128, False), (256, True), (256, False), (24, True)):
        label = f"short_convolution/{'unit' if unit else 'plain'}/{size}"
        yield build_of(convolution_kernel, label, types, convolution_options(4, size, unit), ("C",))
