"""TritonKernels as a whole: the protocol's methods, and a layer's kernels one after the other against plain torch."""

from __future__ import annotations

import inspect

import pytest
import torch

from psyfast.errors import BackendError
from psyfast.ops.gpu.checks import HostTables
from psyfast.ops.gpu.kernel_set import DeviceKernels, DeviceNorm, HeadsShape, HeadsTraits
from psyfast.ops.gpu.tiles import plan_tiles
from psyfast.ops.gpu.triton_kernels import TritonKernels
from tests.ops.plain_kernels import PlainKernels


def test_every_method_of_the_protocol_has_its_arguments() -> None:
    for name, method in inspect.getmembers(DeviceKernels, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(TritonKernels, name)).parameters.values()
            wanted = inspect.signature(method).parameters.values()
            assert [(p.name, p.kind) for p in ours] == [(p.name, p.kind) for p in wanted], name


@pytest.mark.parametrize("head_dim", [16, 72, 512])
def test_a_head_dimension_without_a_kernel_is_refused(head_dim: int) -> None:
    with pytest.raises(BackendError, match=f"no attention for heads of {head_dim}, expected one of 64, 80"):
        TritonKernels().tile_shape(head_dim, torch.bfloat16)


def test_a_chain_of_kernels_ends_at_the_plain_ones_scores() -> None:
    """One segment of 70 tokens, two heads on one kv head; fp32, so that the two chains differ by sums alone."""
    T, E, D, V = 70, 64, 128, 300
    ours, plain = TritonKernels(), PlainKernels()
    query_rows, key_pages = ours.tile_shape(E, torch.float32)
    tables = HostTables(
        positions=torch.arange(T).numpy(),
        qo_indptr=torch.tensor([0, T]).numpy(),
        kv_indptr=torch.tensor([0, 2]).numpy(),
        kv_indices=torch.tensor([0, 1]).numpy(),
        num_pages=2,
    )
    tiles = plan_tiles(tables, query_rows, key_pages, None)
    norm, positions = DeviceNorm(torch.rand(D), 1e-6, False), torch.arange(T)
    x, qkv_proj, lm_head = torch.randn(T, D), torch.randn(D, 4 * E) / 8, torch.randn(V, D) / 8
    angles = torch.rand(T, E // 2)
    target, options = torch.randint(0, V, (T,)), torch.randint(-1, V, (T, 2))
    scores = []
    for kernels in (ours, plain):
        kv = (torch.zeros(2, 1, 64, E), torch.zeros(2, 1, 64, E))
        residual = x.clone()
        qkv = kernels.norm_rows(residual, norm, torch.float32) @ qkv_proj
        traits = HeadsTraits(None, DeviceNorm(torch.ones(E), 1e-6, False), None, False)
        q = kernels.heads(
            qkv, HeadsShape(2, 1, E), traits, (angles.cos(), angles.sin()), positions, positions, kv, torch.float32
        )
        o = kernels.attention(q, kv, positions, tiles, scale=0.125, window=None, soft_cap=None, sinks_H=None)
        kernels.add_rows(residual, o, None, norm)
        kernels.add_rows(residual, kernels.gated(residual.repeat(1, 2), "silu", torch.float32), None, None)
        y = kernels.norm_rows(residual, norm, torch.float32)
        scores.append(kernels.linear_nll(y, lm_head, target, options, scale=1.0, soft_cap=None))
    torch.testing.assert_close(scores[0].nll_N, scores[1].nll_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[0].entropy_N, scores[1].entropy_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores[0].option_nll_NK, scores[1].option_nll_NK, rtol=1e-5, atol=1e-5, equal_nan=True)
