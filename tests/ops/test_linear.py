"""Native attn_in, attn_out and mlp against the reference on the same operands, and their bits against themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from native_builds import LEVELS
from packed_pages import unpack_pages

from psyfast.engine import allocate_pages
from psyfast.errors import BackendError
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import cpu_attention, cpu_linear, reference
from psyfast.ops.records import AttnInWeights, AttnOutWeights, Lane, MlpWeights, Norm, OutputGate, Rope
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch

pytestmark = pytest.mark.parametrize("level", LEVELS, ids=str)
LANES = list(Lane)
# Heads, kv heads, head size, hidden, feed-forward: whole panels, narrow ones, odd sizes, two feed-forward blocks.
SHAPES = [(3, 1, 64, 96, 100), (4, 2, 16, 33, 33), (2, 2, 80, 64, 70), (2, 1, 128, 70, 2100), (4, 2, 6, 40, 64)]
# fp32: a few roundings of sums. bf16: an operand on a tie may round the other way after another order of sums.
TOLERANCE = {Lane.FP32: 1e-5, Lane.BF16: 2e-2}


@pytest.fixture(autouse=True)
def _activate(level, monkeypatch):
    level.activate(monkeypatch)


def matrix(rows, inner):
    return torch.randn(rows, inner) / inner**0.5


def attn_in_case(shape, lane, norms="of each head"):
    H, K, E, D, F = shape
    traits = Traits("test", 1, D, F, H, K, E, 100, 4000, 1e-5, RopeTraits())
    ids = np.arange(150)
    branches = (Branch(100, np.array([7, 8, 9]), 100, 103), Branch(65, np.array([5, 8, 9]), 65, 68))
    batch = plan_batch([Request(ids, np.array([149]), branches)]).batch
    rope, together = Rope(traits.rope.inv_freq(E)), norms.startswith("of heads together")
    weights = AttnInWeights(
        norm=Norm(torch.rand(D) + 0.5, 1e-5) if norms in ("of each head", "of heads together") else None,
        qkv_proj=matrix((H + 2 * K) * E, D),
        bias=torch.randn((H + 2 * K) * E),
        num_heads=H,
        num_kv_heads=K,
        head_dim=E,
        rope=rope,
        q_norm=None if norms == "none" else Norm(torch.rand(H * E if together else E) + 0.5, 1e-5),
        k_norm=None if norms == "none" else Norm(torch.rand(K * E if together else E), 1e-5, unit_offset=True),
        norm_heads_together=together,
    )

    def pages(backend):
        return allocate_pages(batch.pages, batch.positions_T, traits, resolve(backend, "cpu", lane))

    return torch.randn(len(batch.token_ids_T), D), weights, pages


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norms", ["of each head", "of heads together", "of heads together, none of x", "none"])
def test_attn_in(level, norms, shape, lane):
    torch.manual_seed(0)
    x, weights, pages = attn_in_case(shape, lane, norms)
    packed = cpu_linear.prepare_attn_in(weights, lane)
    native_pages, reference_pages = pages("cpu"), pages("reference")
    q = cpu_linear.attn_in(x, native_pages, packed, lane=lane, isa=level.isa)
    expected = reference.attn_in(x, reference_pages, weights, lane=lane)
    k, v = unpack_pages(native_pages.k, native_pages.v, shape[2], lane)
    for got, want in ((q, expected), (k, reference_pages.k), (v, reference_pages.v)):
        assert torch.allclose(got.float(), want.float(), atol=TOLERANCE[lane], rtol=TOLERANCE[lane])
    rows = torch.tensor([3, 70, len(x) - 1])
    for num_threads in (1, 2, 3, 7):
        again = pages("cpu")
        some = cpu_linear.attn_in(x, again, packed, lane=lane, rows_N=rows, num_threads=num_threads, isa=level.isa)
        assert torch.equal(some, q[rows])
        assert torch.equal(again.k, native_pages.k)
        assert torch.equal(again.v, native_pages.v)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("gate", [None, "sigmoid", "silu", "silu, x as it is"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attn_out(level, shape, gate, with_norm, lane):
    torch.manual_seed(1)
    H, _, E, D, _ = shape
    o = torch.randn(41, H * E).to(cpu_attention.OPERAND[lane])
    weights = AttnOutWeights(matrix(D, H * E), torch.randn(D), Norm(torch.rand(D), 1e-5) if with_norm else None)
    if gate is not None:
        norm = None if "as it is" in gate else Norm(torch.rand(D), 1e-5, unit_offset=True)
        weights = replace(weights, gate=OutputGate(norm, matrix(H * E, D), gate.partition(",")[0]))
    packed, x = cpu_linear.prepare_attn_out(weights, lane), torch.randn(41, D)
    got, want = x.clone(), x.clone()
    cpu_linear.attn_out(o, got, packed, lane=lane, isa=level.isa)
    reference.attn_out(o, want, weights, lane=lane)
    # Without a gate the operands are given: there is no rounding of ours.
    tolerance = 1e-5 if gate is None else TOLERANCE[lane]
    assert torch.allclose(got, want, atol=tolerance, rtol=tolerance)
    for num_threads, rows in ((2, slice(0, 41)), (3, slice(5, 9)), (7, slice(40, 41))):
        part = x[rows].clone()
        part_o = o[rows].contiguous()
        cpu_linear.attn_out(part_o, part, packed, lane=lane, num_threads=num_threads, isa=level.isa)
        assert torch.equal(part, got[rows])


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_norm", [True, False])
def test_mlp(level, with_norm, shape, activation, lane):
    torch.manual_seed(2)
    *_, D, F = shape
    norm = Norm(torch.rand(D) + 0.5, 1e-5) if with_norm else None
    weights = MlpWeights(norm, matrix(2 * F, D), matrix(D, F), activation)
    packed, x = cpu_linear.prepare_mlp(weights, lane), torch.randn(41, D)
    got, want = x.clone(), x.clone()
    cpu_linear.mlp(got, packed, lane=lane, isa=level.isa)
    reference.mlp(want, weights, lane=lane)
    assert torch.allclose(got, want, atol=TOLERANCE[lane], rtol=TOLERANCE[lane])
    for num_threads, rows in ((2, slice(0, 41)), (3, slice(5, 9)), (7, slice(40, 41))):
        part = x[rows].clone()
        cpu_linear.mlp(part, packed, lane=lane, num_threads=num_threads, isa=level.isa)
        assert torch.equal(part, got[rows])
    other = (x * 1.5 + 1).contiguous()
    cpu_linear.mlp(other, packed, lane=lane, isa=level.isa)
    assert not torch.equal(other, got)  # the comparison can fail


def test_bad_input_is_refused(level):
    x, weights, pages = attn_in_case(SHAPES[0], Lane.FP32)
    packed = cpu_linear.prepare_attn_in(weights, Lane.FP32)
    with pytest.raises(BackendError, match=r"q_norm weight has shape \[192\], expected \[64\]"):
        cpu_linear.prepare_attn_in(replace(weights, q_norm=Norm(torch.ones(192), 1e-5)), Lane.FP32)
    with pytest.raises(BackendError, match="q_norm or k_norm is null"):
        one = replace(weights, norm_heads_together=True, q_norm=Norm(torch.ones(192), 1e-5), k_norm=None)
        cpu_linear.attn_in(x, pages("cpu"), cpu_linear.prepare_attn_in(one, Lane.FP32), lane=Lane.FP32, isa=level.isa)
    with pytest.raises(BackendError, match="packed for lane fp32"):
        cpu_linear.attn_in(x, pages("cpu"), packed, lane=Lane.BF16, isa=level.isa)
    with pytest.raises(BackendError, match="x has shape"):
        cpu_linear.attn_in(x[:, :-1].contiguous(), pages("cpu"), packed, lane=Lane.FP32, isa=level.isa)
    outside = pages("cpu")
    outside.slots_T[4] = 10**7
    with pytest.raises(BackendError, match="slot"):
        cpu_linear.attn_in(x, outside, packed, lane=Lane.FP32, isa=level.isa)
    with pytest.raises(BackendError, match="gate_up_proj has shape"):
        cpu_linear.prepare_mlp(MlpWeights(Norm(torch.ones(8), 1e-5), matrix(9, 8), matrix(8, 5)), Lane.FP32)
    mlp = cpu_linear.prepare_mlp(MlpWeights(Norm(torch.ones(8), 1e-5), matrix(10, 8), matrix(8, 5), "relu"), Lane.FP32)
    with pytest.raises(BackendError, match="relu"):
        cpu_linear.mlp(torch.randn(2, 8), mlp, lane=Lane.FP32, isa=level.isa)
