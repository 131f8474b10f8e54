"""Interpreted attention against an fp64 truth over the same tiles, on random forests; a row's bits in any company."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from psyfast.kernels.triton import attention
from psyfast.ops.gpu.checks import HostTables
from psyfast.ops.gpu.kernel_set import AttentionTiles
from psyfast.ops.gpu.tiles import plan_tiles
from psyfast.plan.batch import Branch, Request, plan_batch
from tests.ops.plain_kernels import PlainKernels

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@dataclass(frozen=True)
class Case:
    """Queries and pages of a batch whose tokens' keys and values hang on token and position alone."""

    q_THE: Tensor
    kv_PKSE: tuple[Tensor, Tensor]
    positions_T: Tensor
    tables: HostTables


def tables_of(batch) -> HostTables:
    pages = batch.pages
    return HostTables(batch.positions_T, pages.qo_indptr, pages.kv_indptr, pages.kv_indices, pages.num_pages)


def make_case(batch, num_heads, num_kv_heads, head_dim, dtype, seed=0) -> Case:
    """Vectors drawn for each token and position, so that the same sequence has the same ones in any batch."""
    tables = tables_of(batch)
    draw = torch.Generator().manual_seed(seed)
    words = torch.randn(16, num_heads + 2 * num_kv_heads, head_dim, generator=draw)
    turns = torch.randn(4096, num_heads + 2 * num_kv_heads, head_dim, generator=draw)
    vectors = words[torch.from_numpy(batch.token_ids_T) % 16] + turns[torch.from_numpy(batch.positions_T)]
    q, k, v = vectors.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    kv = tuple(torch.zeros(tables.num_pages, num_kv_heads, 64, head_dim, dtype=dtype) for _ in range(2))
    slots = torch.from_numpy(batch.pages.slots_T)
    for stored, new in zip(kv, (k, v), strict=True):
        stored[slots // 64, :, slots % 64] = new.to(dtype)
    PlainKernels().copy_slots(kv, torch.from_numpy(batch.pages.copy_runs))
    return Case(q.to(dtype).contiguous(), kv, torch.from_numpy(batch.positions_T), tables)


def tiles_for(case: Case, window, capability) -> AttentionTiles:
    shape = attention.attention_shape(capability, case.q_THE.dtype, case.q_THE.shape[2])
    return plan_tiles(case.tables, shape.query_rows, shape.key_pages, window)


def run(case: Case, *, window=None, soft_cap=None, sinks_H=None, capability=80) -> Tensor:
    return attention.attention(
        case.q_THE, case.kv_PKSE, case.positions_T, tiles_for(case, window, capability),
        scale=0.3, window=window, soft_cap=soft_cap, sinks_H=sinks_H, capability=capability,
    )  # fmt: skip


def truth(case: Case, dtype=torch.float64, *, window=None, soft_cap=None, sinks_H=None, capability=80) -> Tensor:
    tiles = tiles_for(case, window, capability)
    plain = PlainKernels(query_rows=tiles.query_rows, key_pages=tiles.key_pages, compute=dtype)
    options = {"scale": 0.3, "window": window, "soft_cap": soft_cap, "sinks_H": sinks_H}
    return plain.attention(case.q_THE, case.kv_PKSE, case.positions_T, tiles, **options)


def check(case: Case, **options) -> None:
    """Twice the error of torch in fp32 from the same operands, and P's and the result's rounding to the operand type."""
    got, exact = run(case, **options).double(), truth(case, **options)
    in_fp32 = truth(case, torch.float32, **options).double()
    eps = torch.finfo(case.q_THE.dtype).eps
    largest = case.kv_PKSE[1].abs().max().item()
    bound = 2 * (in_fp32 - exact).abs().max().item() + largest * (2 * eps if eps > 1e-5 else 16 * eps)
    assert torch.isfinite(got).all()
    assert (got - exact).abs().max().item() <= bound


def whole(ids):
    return Request(np.asarray(ids), np.array([len(ids) - 1]))


def caterpillar(rng, length):
    """A trunk with short branches, forks inside pages and at their borders."""
    starts = sorted({5, 63, 64, 65, *rng.integers(1, length, 6).tolist()})
    branches = tuple(Branch(s, rng.integers(0, 16, 3), s, s + 3) for s in starts if s < length)
    return Request(rng.integers(0, 16, length), np.array([length - 1]), branches)


def forest(seed, lengths=(70, 131)):
    rng = np.random.default_rng(seed)
    return plan_batch([*(caterpillar(rng, length) for length in lengths), whole(rng.integers(0, 16, 2))]).batch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", attention.HEAD_DIMS)
def test_every_type_and_head_size(dtype, head_dim):
    check(make_case(forest(head_dim, (67,)), 2, 1, head_dim, dtype, seed=head_dim))


@pytest.mark.parametrize("heads", [(1, 1), (4, 2), (3, 1)], ids=str)
def test_groups(heads):
    check(make_case(forest(1, (130,)), *heads, 64, torch.float16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("window", [1, 40, 64, 65, 1000])
def test_windows(dtype, window):
    check(make_case(forest(2), 2, 1, 64, dtype), window=window)


@pytest.mark.parametrize("capability", [80, 90])
def test_soft_cap_and_sinks(capability):
    case = make_case(forest(3), 2, 1, 64, torch.bfloat16)
    check(case, soft_cap=5.0, capability=capability)
    check(case, sinks_H=torch.tensor([3.0, -2.0]), capability=capability)
    check(case, soft_cap=2.0, window=50, sinks_H=torch.tensor([-4.0, 9.0]), capability=capability)


@pytest.mark.parametrize("length", [2, 3, 64, 65, 66, 97, 129, 193])
def test_lengths_around_a_page(length):
    batch = plan_batch([whole(np.arange(length) % 16)]).batch
    for capability in (80, 90):
        check(make_case(batch, 1, 1, 64, torch.bfloat16), capability=capability)


def test_segments_without_rows_and_no_rows_at_all():
    case = make_case(forest(4), 2, 1, 64, torch.float16)
    rows = np.array([3, 70, 71, 140])
    some = replace(
        case.tables, positions=case.tables.positions[rows], qo_indptr=np.searchsorted(rows, case.tables.qo_indptr)
    )
    few = Case(case.q_THE[rows].contiguous(), case.kv_PKSE, case.positions_T[rows], some)
    assert torch.equal(run(few), run(case)[rows])
    none = replace(case.tables, positions=np.zeros(0, np.int64), qo_indptr=np.zeros_like(case.tables.qo_indptr))
    assert run(Case(case.q_THE[:0], case.kv_PKSE, case.positions_T[:0], none)).shape == (0, 128)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.bfloat16, {}),
        (torch.bfloat16, {"capability": 90, "window": 33}),
        (torch.float32, {"soft_cap": 4.0}),
        (torch.float16, {"sinks_H": torch.tensor([1.0, 0.0])}),
    ],
)
def test_a_rows_bits_do_not_depend_on_company_sharing_or_order(dtype, options):
    rng = np.random.default_rng(5)
    stem = rng.integers(0, 16, 150)
    sequences = [np.concatenate([stem[:cut], rng.integers(0, 16, 9)]) for cut in (150, 64, 70, 3, 128)]

    def of_all(order, share):
        """Each sequence's last output row, and every row of the first."""
        requests = [whole(sequences[i]) for i in order]
        batch = plan_batch(requests, share=share).batch
        out = run(make_case(batch, 2, 1, 64, dtype), **options)
        return {i: out[row] for i, row in zip(order, batch.rows_N.tolist(), strict=True)}

    alone = {i: of_all([i], True)[i] for i in range(len(sequences))}
    for order, share in (([0, 1, 2, 3, 4], True), ([4, 2, 0, 3, 1], True), ([3, 1, 4, 0, 2], False)):
        for i, row in of_all(order, share).items():
            assert torch.equal(row, alone[i]), (i, order, share)
    assert not torch.equal(alone[0], alone[1])


def test_two_runs_give_the_same_bits():
    case = make_case(forest(6), 2, 1, 96, torch.bfloat16)
    assert torch.equal(run(case), run(case))
