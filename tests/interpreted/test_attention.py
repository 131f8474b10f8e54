"""Interpreted attention against an fp64 truth over the same tiles, on random forests; a row's bits in any company."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from psyfast.kernels.triton import attention
from psyfast.plan.batch import plan_batch
from tests.ops.attention_cases import (
    GROUPS,
    AttentionCase,
    attend,
    check_attention,
    forest,
    make_case,
    rows_by_sequence,
    tiles_of_case,
    whole,
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@dataclass(frozen=True)
class As:
    """The kernel with the tiles of a generation of GPUs."""

    capability: int = 80

    def tile_shape(self, head_dim, dtype):
        shape = attention.attention_shape(self.capability, dtype, head_dim)
        return shape.query_rows, shape.key_pages

    def attention(self, q_THE, kv_PKSE, positions_T, tiles, **options):
        return attention.attention(q_THE, kv_PKSE, positions_T, tiles, capability=self.capability, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", attention.HEAD_DIMS)
def test_every_type_and_head_size(dtype, head_dim):
    num_kv_heads = 1 if head_dim in (64, 256) else 2
    batch = forest(head_dim, (67,))
    check_attention(As(), make_case(batch, 2, num_kv_heads, head_dim, dtype, seed=head_dim))


@pytest.mark.parametrize(("num_kv_heads", "group"), [(1, 1), (1, 3), *GROUPS])
def test_query_heads_that_share_key_heads(num_kv_heads, group):
    case = make_case(forest(group, (67,)), num_kv_heads * group, num_kv_heads, 64, torch.float16)
    check_attention(As(), case, window=50)
    check_attention(As(90), case)


@pytest.mark.parametrize("window", [1, 40, 64, 65, 1000])
def test_windows(window):
    check_attention(As(), make_case(forest(2), 2, 1, 64, torch.bfloat16), window=window)
    check_attention(As(), make_case(forest(2, (70,)), 1, 1, 64, torch.float32), window=window)


@pytest.mark.parametrize("capability", [80, 90])
def test_soft_cap_and_sinks(capability):
    kernels, case = As(capability), make_case(forest(3), 2, 1, 64, torch.bfloat16)
    check_attention(kernels, case, soft_cap=5.0)
    check_attention(kernels, case, sinks_H=torch.tensor([3.0, -2.0]))
    check_attention(kernels, case, soft_cap=2.0, window=50, sinks_H=torch.tensor([-4.0, 9.0]))


@pytest.mark.parametrize("length", [2, 3, 64, 65, 66, 97, 129, 193])
def test_lengths_around_a_page(length):
    case = make_case(plan_batch([whole(np.arange(length) % 16)]).batch, 1, 1, 64, torch.bfloat16)
    for capability in (80, 90):
        check_attention(As(capability), case)


def test_segments_without_rows_and_no_rows_at_all():
    kernels, case = As(), make_case(forest(4), 2, 1, 64, torch.float16)
    tables, every = case.tables, attend(As(), case, tiles_of_case(kernels, case, None))
    for rows in (np.array([3, 70, 71, 140]), np.zeros(0, np.int64)):
        some = replace(tables, positions=tables.positions[rows], qo_indptr=np.searchsorted(rows, tables.qo_indptr))
        few = AttentionCase(case.q_THE[rows].contiguous(), case.kv_PKSE, case.positions_T[rows], some)
        assert torch.equal(attend(kernels, few, tiles_of_case(kernels, few, None)), every[rows])


@pytest.mark.parametrize(
    ("dtype", "capability", "options"),
    [
        (torch.bfloat16, 80, {}),
        (torch.bfloat16, 90, {"window": 33}),
        (torch.float32, 80, {"soft_cap": 4.0}),
        (torch.float16, 80, {"sinks_H": torch.tensor([1.0, 0.0])}),
    ],
)
def test_a_rows_bits_do_not_depend_on_company_sharing_or_order(dtype, capability, options):
    alone, others = rows_by_sequence(As(capability), dtype, options)
    assert not torch.equal(alone[0], alone[1])
    for company in others:
        for i, row in company.items():
            assert torch.equal(row, alone[i]), i


def test_two_runs_give_the_same_bits():
    case = make_case(forest(6), 2, 1, 96, torch.bfloat16)
    tiles = tiles_of_case(As(), case, None)
    assert torch.equal(attend(As(), case, tiles), attend(As(), case, tiles))
