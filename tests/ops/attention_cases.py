"""Attention on random forests, for any backend's kernels: the cases, the fp64 truth, and rows in different company."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psyfast.ops.gpu.checks import HostTables
from psyfast.ops.gpu.kernel_set import AttentionTiles, DeviceKernels
from psyfast.ops.gpu.tiles import plan_tiles
from psyfast.plan.batch import Branch, Request, plan_batch
from tests.ops.plain_kernels import PlainKernels

SCALE = 0.3
GROUPS = [(heads, group) for heads in (2, 3) for group in (1, 3, 4)]
"""Key/value heads, and the query heads that share one."""
NO_TRAITS: dict[str, Any] = {"window": None, "soft_cap": None, "sinks_H": None}


@dataclass(frozen=True)
class AttentionCase:
    """Queries and pages of a batch whose vectors hang on token and position alone."""

    q_THE: Tensor
    kv_PKSE: tuple[Tensor, Tensor]
    positions_T: Tensor
    tables: HostTables


def make_case(batch, num_heads, num_kv_heads, head_dim, dtype, seed=0) -> AttentionCase:
    """Vectors drawn for each token and position, so that the same sequence has the same ones in any batch."""
    pages = batch.pages
    tables = HostTables(batch.positions_T, pages.qo_indptr, pages.kv_indptr, pages.kv_indices, pages.num_pages)
    draw = torch.Generator().manual_seed(seed)
    words = torch.randn(16, num_heads + 2 * num_kv_heads, head_dim, generator=draw)
    turns = torch.randn(512, num_heads + 2 * num_kv_heads, head_dim, generator=draw)
    vectors = words[torch.from_numpy(batch.token_ids_T) % 16] + turns[torch.from_numpy(batch.positions_T)]
    q, k, v = vectors.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    kv = tuple(torch.zeros(tables.num_pages, num_kv_heads, 64, head_dim, dtype=dtype) for _ in range(2))
    slots = torch.from_numpy(pages.slots_T)
    for stored, new in zip(kv, (k, v), strict=True):
        stored[slots // 64, :, slots % 64] = new.to(dtype)
    PlainKernels().copy_slots(kv, torch.from_numpy(pages.copy_runs))
    return AttentionCase(q.to(dtype).contiguous(), kv, torch.from_numpy(batch.positions_T), tables)


def tiles_of_case(kernels: DeviceKernels, case: AttentionCase, window: int | None) -> AttentionTiles:
    return plan_tiles(case.tables, *kernels.tile_shape(case.q_THE.shape[2], case.q_THE.dtype), window)


def attend(kernels: DeviceKernels, case: AttentionCase, tiles: AttentionTiles, **options) -> Tensor:
    traits = NO_TRAITS | options
    return kernels.attention(case.q_THE, case.kv_PKSE, case.positions_T, tiles, scale=SCALE, **traits)


def check_attention(kernels: DeviceKernels, case: AttentionCase, **options) -> None:
    """Twice the error of torch in fp32 from the same operands, and P's and the result's rounding to the operand type."""
    tiles = tiles_of_case(kernels, case, options.get("window"))
    shape = {"query_rows": tiles.query_rows, "key_pages": tiles.key_pages}
    got = attend(kernels, case, tiles, **options).double()
    exact = attend(PlainKernels(**shape, compute=torch.float64), case, tiles, **options)
    in_fp32 = attend(PlainKernels(**shape, compute=torch.float32), case, tiles, **options).double()
    eps = torch.finfo(case.q_THE.dtype).eps
    largest = case.kv_PKSE[1].abs().max().item()
    bound = 2 * (in_fp32 - exact).abs().max().item() + largest * (2 * eps if eps > 1e-5 else 16 * eps)
    assert torch.isfinite(got).all()
    assert (got - exact).abs().max().item() <= bound


def whole(ids) -> Request:
    return Request(np.asarray(ids), np.array([len(ids) - 1]))


def caterpillar(rng, length) -> Request:
    """A trunk with short branches, forks inside pages and at their borders."""
    starts = sorted({5, 63, 64, 65, *rng.integers(1, length, 6).tolist()})
    branches = tuple(Branch(s, rng.integers(0, 16, 3), s, s + 3) for s in starts if s < length)
    return Request(rng.integers(0, 16, length), np.array([length - 1]), branches)


def forest(seed, lengths=(70, 131)):
    rng = np.random.default_rng(seed)
    return plan_batch([*(caterpillar(rng, length) for length in lengths), whole(rng.integers(0, 16, 2))]).batch


def rows_by_sequence(kernels: DeviceKernels, dtype, options) -> tuple[dict[int, Tensor], list[dict[int, Tensor]]]:
    """The last output row of five sequences that begin alike: each alone; all together in orders, shared and not."""
    rng = np.random.default_rng(5)
    stem = rng.integers(0, 16, 150)
    sequences = [np.concatenate([stem[:cut], rng.integers(0, 16, 9)]) for cut in (150, 64, 70, 3, 128)]

    def of_all(order, share):
        batch = plan_batch([whole(sequences[i]) for i in order], share=share).batch
        case = make_case(batch, 2, 1, 64, dtype)
        out = attend(kernels, case, tiles_of_case(kernels, case, options.get("window")), **options)
        return {i: out[row] for i, row in zip(order, batch.rows_N.tolist(), strict=True)}

    alone = {i: of_all([i], True)[i] for i in range(len(sequences))}
    orders = (([0, 1, 2, 3, 4], True), ([4, 2, 0, 3, 1], True), ([3, 1, 4, 0, 2], False))
    return alone, [of_all(order, share) for order, share in orders]
