"""The reference operators against the textbook: one row, one head, one key at a time, in fp64."""

import math

import numpy as np
import pytest
import torch

from psyfast.engine import allocate_pages
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import reference
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    Lane,
    MlpWeights,
    Norm,
    Rope,
)
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch

H, K, E, D = 4, 2, 8, 24
TRAITS = Traits("test", 1, D, 40, H, K, E, 11, 4096, 1e-5, RopeTraits())


def awkward_batch(rng):
    """Trunks that share prefixes, branches inside and across pages, a segment of one token, more rows than a tile."""
    stem = rng.integers(0, 9, 700)
    requests = [
        Request(stem, np.array([699])),
        Request(np.concatenate([stem[:130], rng.integers(0, 9, 70)]), np.array([199])),
        Request(np.concatenate([stem[:64], [9, 1, 2]]), np.array([66])),
        Request(np.array([10, 3]), np.array([1])),
    ]
    branches = tuple(
        Branch(start, rng.integers(9, 11, 3), start, start + 3) for start in (1, 63, 64, 65, 127, 128, 400, 698)
    )
    requests[0] = Request(stem, np.array([699]), branches)
    return plan_batch(requests).batch


def pages_of(batch, lane=Lane.FP32):
    return allocate_pages(batch.pages, batch.positions_T, TRAITS, resolve("reference", "cpu", lane))


def pasts(batch):
    """For each row the rows of its path, in order of position, through parents found by brute force."""
    indptr, found = batch.pages.qo_indptr, []
    slots = {}
    for row, slot in enumerate(batch.pages.slots_T):
        slots[slot] = row
    for source, copy in zip(batch.pages.copy_from, batch.pages.copy_to, strict=True):
        slots[copy] = slots[source]
    for segment in range(len(indptr) - 1):
        kv = batch.pages.kv_indices[batch.pages.kv_indptr[segment] : batch.pages.kv_indptr[segment + 1]]
        for row in range(indptr[segment], indptr[segment + 1]):
            positions = range(batch.positions_T[row] + 1)
            found.append([slots[kv[p // 64] * 64 + p % 64] for p in positions])
    return found


@pytest.mark.parametrize(
    "params",
    [
        AttentionParams(scale=0.3),
        AttentionParams(scale=0.3, window=50),
        AttentionParams(scale=0.3, window=1),
        AttentionParams(scale=0.9, soft_cap=2.0),
        AttentionParams(scale=0.3, sinks_H=torch.tensor([0.0, 3.0, -5.0, 1.0])),
    ],
    ids=["plain", "window", "window of one", "soft cap", "sinks"],
)
def test_attention_is_the_textbooks(params):
    batch = awkward_batch(np.random.default_rng(3))
    torch.manual_seed(3)
    num_tokens = len(batch.token_ids_T)
    q, k, v = torch.randn(num_tokens, H, E), torch.randn(num_tokens, K, E), torch.randn(num_tokens, K, E)
    pages = pages_of(batch)
    for buffer, values in ((pages.k, k), (pages.v, v)):
        flat = buffer.view(-1, K, E)
        flat[pages.slots_T] = values
        flat[pages.copy_to] = flat[pages.copy_from]
    got = reference.attention(q, pages, params, lane=Lane.FP32).view(num_tokens, H, E)
    wanted = torch.empty(num_tokens, H, E, dtype=torch.float64)
    for row, past in enumerate(pasts(batch)):
        if params.window is not None:
            past = past[-params.window :]
        for head in range(H):
            scores = (k[past, head // (H // K)].double() @ q[row, head].double()) * params.scale
            if params.soft_cap is not None:
                scores = params.soft_cap * (scores / params.soft_cap).tanh()
            weights = scores.exp()
            total = weights.sum() + (params.sinks_H[head].double().exp() if params.sinks_H is not None else 0)
            wanted[row, head] = (weights / total) @ v[past, head // (H // K)].double()
    assert (got - wanted).abs().max() < 2e-6


def test_rotation_turns_each_pair_by_its_angle():
    torch.manual_seed(0)
    x = torch.randn(5, 2, E, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 100, 4095])
    rope = Rope(RopeTraits().inv_freq(E).double())
    got = reference.rotate(x, positions, rope)
    for t, position in enumerate(positions.tolist()):
        for pair in range(E // 2):
            angle = position * float(10000 ** (-2 * pair / E))
            a, b = x[t, 0, pair].item(), x[t, 0, pair + E // 2].item()
            assert got[t, 0, pair].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-3)
            assert got[t, 0, pair + E // 2].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-3)
    assert torch.equal(got[0], x[0])


def test_a_partial_rotation_leaves_the_rest_alone():
    x = torch.randn(3, 1, E)
    got = reference.rotate(x, torch.tensor([5, 6, 7]), Rope(RopeTraits(rotated_share=0.5).inv_freq(E)))
    assert torch.equal(got[..., 4:], x[..., 4:]) and not torch.allclose(got[..., :4], x[..., :4])


def test_norm_with_and_without_the_unit_offset():
    x = torch.randn(3, D, dtype=torch.float64)
    weight = torch.randn(D)
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert torch.allclose(reference.rms_norm(x, Norm(weight, 1e-5)), plain)
    assert torch.allclose(reference.rms_norm(x, Norm(weight - 1, 1e-5, unit_offset=True)), plain, atol=1e-6)


def test_attn_in_writes_keys_and_values_and_the_heads_of_forked_pages():
    batch = awkward_batch(np.random.default_rng(4))
    pages = pages_of(batch)
    torch.manual_seed(4)
    x = torch.randn(len(batch.token_ids_T), D)
    norm = Norm(torch.ones(D), 1e-5)
    weights = AttnInWeights(norm, torch.randn((H + 2 * K) * E, D), torch.randn((H + 2 * K) * E), H, K, E, None)
    q = reference.attn_in(x, pages, weights, lane=Lane.FP32)
    fused = reference.rms_norm(x.double(), norm) @ weights.qkv_proj.double().T + weights.bias.double()
    assert (q.flatten(1) - fused[:, : H * E]).abs().max() < 1e-4
    for row, past in enumerate(pasts(batch)):
        assert past[-1] == row
    keys = pages.k.view(-1, K * E)
    assert (keys[pages.slots_T] - fused[:, H * E : (H + K) * E]).abs().max() < 1e-4
    assert torch.equal(keys[pages.copy_to], keys[pages.copy_from])


def test_attn_out_and_mlp_add_to_the_residual():
    torch.manual_seed(5)
    x, o = torch.randn(7, D), torch.randn(7, H * E)
    post = Norm(torch.rand(D), 1e-5)
    before = x.clone()
    weights = AttnOutWeights(torch.randn(D, H * E), torch.randn(D), post)
    reference.attn_out(o, x, weights, lane=Lane.FP32)
    wanted = before + reference.rms_norm(o @ weights.o_proj.T + weights.bias, post)
    assert torch.allclose(x, wanted, atol=1e-5)
    before = x.clone()
    mlp = MlpWeights(Norm(torch.rand(D), 1e-5), torch.randn(80, D), torch.randn(D, 40))
    reference.mlp(x, mlp, lane=Lane.FP32)
    normed = reference.rms_norm(before, mlp.norm)
    gate, up = normed @ mlp.gate_up_proj[:40].T, normed @ mlp.gate_up_proj[40:].T
    assert torch.allclose(x, before + (gate * gate.sigmoid() * up) @ mlp.down_proj.T, atol=1e-4)


def test_the_bf16_lane_rounds_operands_and_nothing_else():
    torch.manual_seed(6)
    x, weight = torch.randn(9, 64), torch.randn(5, 64)
    got = reference.linear(x, reference.operand(weight, Lane.BF16), Lane.BF16)
    exact = x.bfloat16().double() @ weight.bfloat16().double().T
    assert (got - exact).abs().max() < 1e-5
    assert (got - x.double() @ weight.double().T).abs().max() > 1e-3
