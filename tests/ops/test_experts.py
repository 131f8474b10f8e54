"""Experts: torch's against a plain loop in fp64, native ones against torch's on the same operands, and their bits."""

from dataclasses import replace

import pytest
import torch
from native_builds import LEVELS

from psyfast.errors import BackendError
from psyfast.ops import cpu_experts
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.records import ExpertsWeights, Lane, Norm
from psyfast.ops.reference import rms_norm
from psyfast.ops.reference_experts import choose_experts, experts
from tests.ops.plain_kernels import PlainKernels

LANES = list(Lane)
TOLERANCE = {Lane.FP32: 1e-5, Lane.BF16: 2e-2}
# Hidden, feed-forward, experts, used: odd sizes, more experts than a panel has columns, two feed-forward blocks, all used.
SHAPES = [(96, 100, 5, 2), (33, 33, 70, 8), (40, 64, 3, 1), (70, 2100, 4, 2), (24, 20, 6, 6)]
KINDS = ["silu", "silu, biases", "gelu_pytorch_tanh", "clamped_swiglu, biases"]


def make_weights(shape, kind="silu", *, normalised=True, with_norm=True, dtype=torch.float32):
    D, F, X, used = shape

    def values(*sizes, scale=1.0):
        return (torch.randn(*sizes, dtype=torch.float64) * scale).to(dtype)

    has_biases = "biases" in kind
    return ExpertsWeights(
        norm=Norm(torch.rand(D).to(dtype) + 0.5, 1e-5) if with_norm else None,
        router=values(X, D, scale=2 / D**0.5),
        gate_up_proj=tuple(values(2 * F, D, scale=4 / D**0.5) for _ in range(X)),  # past the clamps
        down_proj=tuple(values(D, F, scale=1 / F**0.5) for _ in range(X)),
        num_used=used,
        normalised=normalised,
        activation=kind.partition(",")[0],
        router_bias=values(X) if has_biases else None,
        gate_up_bias=values(X, 2 * F) if has_biases else None,
        down_bias=values(X, D) if has_biases else None,
    )


def by_hand(x_D, weights):
    """One token in fp64, from the definition."""
    h = rms_norm(x_D[None], weights.norm)[0]
    logits = weights.router @ h + (0 if weights.router_bias is None else weights.router_bias)
    order = sorted(range(len(logits)), key=lambda e: (-logits[e], e))[: weights.num_used]
    shares = torch.exp(logits - logits.max())
    whole = shares[order].sum() if weights.normalised else shares.sum()
    y = x_D.clone()
    for e in order:
        both = weights.gate_up_proj[e] @ h + (0 if weights.gate_up_bias is None else weights.gate_up_bias[e])
        gate, up = both.chunk(2)
        if weights.activation == "clamped_swiglu":
            gate = torch.minimum(gate, torch.tensor(7.0))
            inner = (torch.minimum(torch.maximum(up, torch.tensor(-7.0)), torch.tensor(7.0)) + 1) * gate
            inner = inner / (1 + torch.exp(-1.702 * gate))
        else:
            inner = gate / (1 + torch.exp(-gate)) * up
        down = weights.down_proj[e] @ inner + (0 if weights.down_bias is None else weights.down_bias[e])
        y += shares[e] / whole * down
    return y


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", ["silu", "silu, biases", "clamped_swiglu, biases"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch_s_are_the_definition_s(shape, kind, normalised):
    weights = make_weights(shape, kind, normalised=normalised, dtype=torch.float64)
    x = torch.randn(9, shape[0], dtype=torch.float64)
    got = x.clone()
    experts(got, weights, lane=Lane.FP32)
    for row, wanted in zip(got, (by_hand(one, weights) for one in x), strict=True):
        assert (row - wanted).abs().max() < 1e-10


def test_equal_logits_go_to_the_first_and_nan_stays_nan():
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, float("nan"), 1.0, 0.0]])
    chosen, weight = choose_experts(logits, 2, normalised=True)
    assert chosen[:2].tolist() == [[1, 2], [0, 1]]
    assert weight[:2].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert weight[2].isnan().all()


def clear_rows(x, weights, lane):
    """Rows whose choice no rounding changes: the last chosen logit stands out from the first that is not."""
    logits = []
    for dtype in (torch.float32, torch.float64):
        h = rms_norm(x.to(dtype), weights.norm) if weights.norm else x.to(dtype)
        product = h @ weights.router.to(dtype).T
        logits.append(product + (0 if weights.router_bias is None else weights.router_bias))
    ordered = logits[1].sort(dim=1, descending=True).values
    if weights.num_used == ordered.shape[1]:
        return torch.ones(len(x), dtype=torch.bool)
    gap = ordered[:, weights.num_used - 1] - ordered[:, weights.num_used]
    return gap > (1e-4 if lane is Lane.FP32 else 5e-2)


def row_errors(got, want):
    """The largest error of a row, as a share of its largest number: sums of large terms round as these do."""
    return (got - want).abs().amax(1) / (1 + want.abs().amax(1))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_native(level, shape, kind, lane, monkeypatch):
    level.activate(monkeypatch)
    weights = make_weights(shape, kind, normalised="biases" in kind, with_norm=kind != "gelu_pytorch_tanh")
    packed, x = cpu_experts.prepare_experts(weights, lane), torch.randn(61, shape[0])
    got, want = x.clone(), x.clone()
    cpu_experts.experts(got, packed, lane=lane, isa=level.isa)
    experts(want, weights, lane=lane)
    clear = clear_rows(x, weights, lane)
    assert clear.sum() > 20
    assert row_errors(got, want)[clear].max() < TOLERANCE[lane]
    for num_threads, rows in ((2, slice(0, 61)), (3, slice(5, 9)), (7, slice(40, 41))):
        part = x[rows].clone()
        cpu_experts.experts(part, packed, lane=lane, num_threads=num_threads, isa=level.isa)
        assert torch.equal(part, got[rows])


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("kind", KINDS)
def test_of_a_device(kind, lane):
    """The operator over device kernels, which are torch's here."""
    shape = SHAPES[1]
    weights = make_weights(shape, kind)
    operators = operators_over(PlainKernels(), lane, torch.device("cpu"))
    from psyfast.ops.gpu.prepared import prepare_experts

    x = torch.randn(61, shape[0])
    got, want = x.clone(), x.clone()
    operators.experts(got, prepare_experts(weights, shape[0], lane), lane=lane)
    experts(want, weights, lane=lane)
    clear = clear_rows(x, weights, lane)
    assert clear.sum() > 20
    assert row_errors(got, want)[clear].max() < TOLERANCE[lane]


def test_more_tokens_than_are_taken_at_a_time():
    """The results of 128 MiB of experts are summed before the next tokens are looked at."""
    weights = make_weights((24, 8, 4, 4))
    packed, x = cpu_experts.prepare_experts(weights, Lane.FP32), torch.randn(110_000, 24)
    got = x.clone()
    cpu_experts.experts(got, packed, lane=Lane.FP32)
    for start in (0, 104_000, 104_900, 109_990):
        part = x[start : start + 10].clone()
        cpu_experts.experts(part, packed, lane=Lane.FP32)
        assert torch.equal(part, got[start : start + 10])


def test_a_nan_reaches_no_other_row():
    packed, x = cpu_experts.prepare_experts(make_weights((33, 40, 5, 2)), Lane.BF16), torch.randn(50, 33)
    want = x.clone()
    cpu_experts.experts(want, packed, lane=Lane.BF16)
    x[17, 3] = float("nan")
    cpu_experts.experts(x, packed, lane=Lane.BF16)
    others = torch.arange(50) != 17
    assert torch.equal(x[others], want[others])
    assert x[17].isnan().all()


MISFITS = {
    "a token uses 6 of 5 experts, expected 1 to 5": {"num_used": 6},
    "a token uses 0 of 5 experts": {"num_used": 0},
    "experts have 4 and 5 projections, expected 5": {"gate_up_proj": (torch.zeros(200, 96),) * 4},
    r"gate_up_proj of expert 0 has shape \[100, 96\], expected \[200, 96\]": {
        "gate_up_proj": (torch.zeros(100, 96),) * 5
    },
    r"router has shape \[5, 95\], expected \[5, 96\]": {"router": torch.zeros(5, 95)},
    r"router_bias has shape \[4\], expected \[5\]": {"router_bias": torch.zeros(4)},
    r"gate_up_bias has shape \[5, 100\], expected \[5, 200\]": {"gate_up_bias": torch.zeros(5, 100)},
    "activation 'relu' is not known": {"activation": "relu"},
}


@pytest.mark.parametrize("message", MISFITS)
def test_weights_that_do_not_fit_are_refused(message):
    weights = replace(make_weights(SHAPES[0]), **MISFITS[message])
    with pytest.raises(BackendError, match=message):
        cpu_experts.prepare_experts(weights, Lane.FP32)


def test_bad_calls_are_refused():
    packed = cpu_experts.prepare_experts(make_weights(SHAPES[0]), Lane.FP32)
    with pytest.raises(BackendError, match="packed for lane fp32"):
        cpu_experts.experts(torch.randn(3, 96), packed, lane=Lane.BF16)
    with pytest.raises(BackendError, match="x has shape"):
        cpu_experts.experts(torch.randn(3, 95), packed, lane=Lane.FP32)
    with pytest.raises(BackendError, match="packed weights of expert 2 are null"):
        addresses = packed.down_addresses.clone()
        addresses[2] = 0
        cpu_experts.experts(torch.randn(3, 96), replace(packed, down_addresses=addresses), lane=Lane.FP32)
    cpu_experts.experts(torch.randn(0, 96), packed, lane=Lane.FP32)
