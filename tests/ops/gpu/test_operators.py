"""What the GPU operators refuse before any kernel runs, and what their products are made of."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from psyfast.engine import allocate_pages
from psyfast.errors import BackendError
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops.gpu import products
from psyfast.ops.gpu.checks import check_delta_limits
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.gpu.products import product
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    ExpertsWeights,
    HeadWeights,
    Lane,
    LayerWeights,
    MlpWeights,
    Norm,
    Rope,
)
from psyfast.plan.batch import Branch, Request, plan_batch
from tests.ops.delta_cases import MISFITS, Case, lone, make_weights
from tests.ops.delta_checks import prepared
from tests.ops.plain_kernels import PlainKernels

D, F, H, K, E, V = 24, 40, 4, 2, 16, 50
CPU = torch.device("cpu")
IDS = torch.arange(100).numpy()


KERNELS = (
    "norm_rows",
    "heads",
    "copy_slots",
    "attention",
    "short_convolution",
    "delta_rule",
    "add_rows",
    "gated",
    "linear_nll",
)


class Untouched(PlainKernels):
    """Kernels that must not be reached."""

    def __getattribute__(self, name):
        if name in KERNELS:
            pytest.fail(f"kernel {name} was reached")
        return super().__getattribute__(name)

    def check_delta_sizes(self, sizes, num_taps):
        check_delta_limits("untouched", sizes, num_taps, 256, 64)


def layer(**changes):
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(shape, generator=generator)

    parts = {
        "attn_in": AttnInWeights(
            Norm(values(D), 1e-5), values((H + 2 * K) * E, D), None, H, K, E, Rope(values(E // 2))
        ),
        "attention": AttentionParams(0.25),
        "attn_out": AttnOutWeights(values(D, H * E)),
        "mlp": MlpWeights(Norm(values(D), 1e-5), values(2 * F, D), values(D, F)),
    }
    return LayerWeights(**{name: replace(part, **changes.get(name, {})) for name, part in parts.items()})


def head(**changes):
    return replace(HeadWeights(Norm(torch.ones(D), 1e-5), torch.ones(V, D)), **changes)


@pytest.fixture
def operators():
    return operators_over(Untouched(), Lane.FP32, CPU)


@pytest.fixture
def pages(operators):
    branches = (Branch(70, IDS[:3], 70, 73),)
    batch = plan_batch([Request(IDS, IDS[99:], branches)]).batch
    traits = Traits("test", 1, D, F, H, K, E, V, 4096, 1e-5, RopeTraits())
    return allocate_pages(batch.pages, batch.positions_T, traits, operators)


PREPARED = {
    "qkv_proj has shape [64, 24], expected [128, 24]": {"attn_in": {"qkv_proj": torch.zeros(64, D)}},
    "bias has shape [3], expected [128]": {"attn_in": {"bias": torch.zeros(3)}},
    "attn_in's norm has shape [5], expected [24]": {"attn_in": {"norm": Norm(torch.ones(5), 1e-5)}},
    "q_norm has shape [64], expected [16]": {"attn_in": {"q_norm": Norm(torch.ones(H * E), 1e-5)}},
    "k_norm has shape [16], expected [32]": {
        "attn_in": {"k_norm": Norm(torch.ones(E), 1e-5), "norm_heads_together": True}
    },
    "9 pairs turn, expected at most 8": {"attn_in": {"rope": Rope(torch.ones(9))}},
    "4 query heads do not share 3 kv heads evenly": {"attn_in": {"num_kv_heads": 3}},
    "window is 0, expected 1 or more": {"attention": {"window": 0}},
    "soft_cap is 0.0, expected a positive number": {"attention": {"soft_cap": 0.0}},
    "sinks have shape [3], expected [4]": {"attention": {"sinks_H": torch.zeros(3)}},
    "o_proj has shape [24, 63], expected [24, 64]": {"attn_out": {"o_proj": torch.zeros(D, 63)}},
    "activation 'relu' has no kernel": {"mlp": {"activation": "relu"}},
    "gate_up_proj has shape [40, 24], expected [80, 24]": {"mlp": {"gate_up_proj": torch.zeros(F, D)}},
}


@pytest.mark.parametrize("message", PREPARED)
def test_weights_that_do_not_fit_are_refused(operators, message):
    operators.prepare_layer(layer())
    with pytest.raises(BackendError) as raised:
        operators.prepare_layer(layer(**PREPARED[message]))
    assert message in str(raised.value)


X = 3


def experts_layer(**changes):
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(X, *shape, generator=generator) for shape in ((D,), (2 * F, D), (D, F))]
    router, gate_up, down = matrices
    weights = ExpertsWeights(Norm(torch.ones(D), 1e-5), router, tuple(gate_up), tuple(down), 2, True)
    return replace(layer(), mlp=None, experts=replace(weights, **changes))


EXPERTS = {
    "router has shape [3, 23], expected [3, 24]": {"router": torch.zeros(X, D - 1)},
    "experts have 3 and 3 projections, expected 4, the router's rows": {"router": torch.zeros(X + 1, D)},
    "experts have 2 and 3 projections, expected 3": {"gate_up_proj": (torch.zeros(2 * F, D),) * 2},
    "experts have 3 and 0 projections, expected 3": {"down_proj": ()},
    "gate_up_proj of expert 2 has shape [40, 24], expected [80, 24]": {
        "gate_up_proj": (torch.zeros(2 * F, D),) * 2 + (torch.zeros(F, D),)
    },
    "down_proj of expert 1 has shape [24, 41], expected [24, 40]": {
        "down_proj": (torch.zeros(D, F), torch.zeros(D, F + 1), torch.zeros(D, F))
    },
    "a token uses 0 of 3 experts, expected 1 to 3": {"num_used": 0},
    "a token uses 4 of 3 experts, expected 1 to 3": {"num_used": 4},
    "activation 'relu' is not known": {"activation": "relu"},
    "experts' norm has shape [5], expected [24]": {"norm": Norm(torch.ones(5), 1e-5)},
    "router_bias has shape [2], expected [3]": {"router_bias": torch.zeros(2)},
    "down_bias has shape [3, 23], expected [3, 24]": {"down_bias": torch.zeros(X, D - 1)},
}


@pytest.mark.parametrize("message", EXPERTS)
def test_experts_that_do_not_fit_are_refused(operators, message):
    operators.prepare_layer(experts_layer())
    with pytest.raises(BackendError) as raised:
        operators.prepare_layer(experts_layer(**EXPERTS[message]))
    assert message in str(raised.value)


def test_experts_refuse(operators):
    weights = operators.prepare_layer(experts_layer()).experts
    refused = {
        r"x has shape \[6, 25\], expected \[\*, 24\]": torch.zeros(6, D + 1),
        "x is torch.float64, expected torch.float32": torch.zeros(6, D).double(),
        "x has strides": torch.zeros(D, 6).t(),
        "x is on meta, expected cpu": torch.zeros(6, D, device="meta"),
    }
    for message, x_TD in refused.items():
        with pytest.raises(BackendError, match=message):
            operators.experts(x_TD, weights, lane=Lane.FP32)
    with pytest.raises(BackendError, match="lane is bf16, expected fp32"):
        operators.experts(torch.zeros(6, D), weights, lane=Lane.BF16)


@pytest.mark.parametrize("message", MISFITS)
def test_weights_of_a_delta_rule_that_do_not_fit_are_refused(operators, message):
    weights = make_weights((2, 4, 6, 6, 4))
    prepared(weights, operators)
    with pytest.raises(BackendError, match=message):
        prepared(replace(weights, **MISFITS[message]), operators)


def test_a_delta_rule_refuses(operators):
    case = Case(lone(5, np.random.default_rng(0)), make_weights((2, 4, 6, 6, 4)))
    weights, pages = prepared(case.weights, operators), case.pages
    refused = {
        r"x has shape \[5, 55\], expected \[\*, 56\]": (case.x[:, 1:].contiguous(), pages),
        r"positions_T has shape \[5\], expected \[4\]": (case.x[1:].contiguous(), pages),
        "x is torch.float64": (case.x.double(), pages),
        "slots_T holds": (case.x, replace(pages, slots_T=pages.slots_T + 10_000, derived={})),
        "kv_indices holds": (case.x, replace(pages, kv_indices=pages.kv_indices + 50, derived={})),
    }
    for message, (x_TD, changed) in refused.items():
        with pytest.raises(BackendError, match=message):
            operators.delta_rule(x_TD, changed, weights, lane=Lane.FP32)
    with pytest.raises(BackendError, match="lane is bf16, expected fp32"):
        operators.delta_rule(case.x, pages, weights, lane=Lane.BF16)


def test_a_head_size_without_a_kernel_is_refused_with_the_weights():
    class Narrow(PlainKernels):
        def tile_shape(self, head_dim, dtype):
            raise BackendError(f"head size {head_dim} has no kernel")

    with pytest.raises(BackendError, match="head size 16 has no kernel"):
        operators_over(Narrow(), Lane.FP32, CPU).prepare_layer(layer())


ARGUMENTS = {
    "x is torch.float64, expected torch.float32": lambda x, pages: (x.double(), pages),
    "x has shape [101, 23], expected [*, 24]": lambda x, pages: (x[:, 1:], pages),
    "x has strides (1, 101), expected contiguous rows": lambda x, pages: (x.t().contiguous().t(), pages),
    "x is on meta, expected cpu": lambda x, pages: (x.to("meta"), pages),
    "pages of K has shape [4, 3, 64, 16], expected [*, 2, 64, 16]": lambda x, pages: (
        x,
        replace(pages, k=torch.zeros(4, 3, 64, E)),
    ),
    "pages of V is torch.bfloat16, expected torch.float32": lambda x, pages: (x, replace(pages, v=pages.v.bfloat16())),
    "positions_T has shape [100], expected [101]": lambda x, pages: (
        x,
        replace(pages, positions_T=pages.positions_T[1:]),
    ),
    "slots_T holds": lambda x, pages: (x, replace(pages, slots_T=pages.slots_T + 10_000)),
    "copy_runs_R4's pages holds": lambda x, pages: (x, replace(pages, copy_runs_R4=pages.copy_runs_R4 + 1000)),
}


@pytest.mark.parametrize("message", ARGUMENTS)
def test_attn_in_refuses(operators, pages, message):
    prepared = operators.prepare_layer(layer())
    x_TD, changed = ARGUMENTS[message](torch.zeros(101, D), pages)
    with pytest.raises(BackendError) as raised:
        operators.attn_in(x_TD, changed, prepared.attn_in, lane=Lane.FP32)
    assert message in str(raised.value)


def test_attention_refuses(operators, pages):
    params, q = AttentionParams(0.25), torch.zeros(101, H, E)
    refused = {
        "q is torch.bfloat16": (q.bfloat16(), pages),
        "q has strides": (q.transpose(1, 2).contiguous().transpose(1, 2), pages),
        "pages of K has shape": (torch.zeros(101, H, 8), pages),
        "kv_indices holds": (q, replace(pages, kv_indices=pages.kv_indices + 50, derived={})),
        "qo_indptr goes": (q, replace(pages, qo_indptr=pages.qo_indptr - 1, derived={})),
    }
    for message, (queries, changed) in refused.items():
        with pytest.raises(BackendError, match=message):
            operators.attention(queries, changed, params, lane=Lane.FP32)
    with pytest.raises(BackendError, match="lane is bf16, expected fp32"):
        operators.attention(q, pages, params, lane=Lane.BF16)


def test_attn_out_and_mlp_refuse(operators):
    prepared = operators.prepare_layer(layer())
    with pytest.raises(BackendError, match=r"o has shape \[5, 64\], expected \[6, 64\]"):
        operators.attn_out(torch.zeros(5, H * E), torch.zeros(6, D), prepared.attn_out, lane=Lane.FP32)
    with pytest.raises(BackendError, match=r"x has shape \[6, 25\], expected \[\*, 24\]"):
        operators.mlp(torch.zeros(6, D + 1), prepared.mlp, lane=Lane.FP32)


def test_the_head_refuses_ids_that_it_has_not(operators):
    linear_nll = operators.make_linear_nll(head())
    x, target, options = torch.zeros(3, D), torch.zeros(3, dtype=torch.int64), torch.full((3, 2), -1)
    refused = {
        "target holds 50, expected numbers in \\[0, 50\\)": (x, target + V, options),
        "target holds -1, expected": (x, target - 1, options),
        "option_ids holds -2, expected numbers in \\[-1, 50\\)": (x, target, options - 1),
        "a row has 65 options, expected at most 64": (x, target, options[:, :1].expand(3, 65)),
        "target has shape \\[2\\], expected \\[3\\]": (x, target[1:], options),
        "option_ids has shape": (x, target, options[1:]),
        "x has shape": (x[:, 1:], target, options),
    }
    for message, arguments in refused.items():
        with pytest.raises(BackendError, match=message):
            linear_nll(*arguments)
    with pytest.raises(BackendError, match="soft_cap is -1"):
        operators.make_linear_nll(head(soft_cap=-1.0))
    with pytest.raises(BackendError, match="final norm has shape"):
        operators.make_linear_nll(head(norm=Norm(torch.ones(3), 1e-5)))


def test_pages_are_of_64_slots(operators):
    with pytest.raises(BackendError, match="pages have 32 slots, expected 64"):
        operators.allocate_kv(1, 32, K, E)


@pytest.mark.parametrize("asked", ["tf32", "ieee"])
def test_fp32_products_are_not_rounded_whatever_the_process_asks_for(monkeypatch, asked):
    """The setting itself is a CUDA device's; here it is seen that a product runs under it and that it is put back."""
    settings, seen, mm = torch.backends.cuda.matmul, [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *given: seen.append(settings.fp32_precision) or mm(*given))
    before, settings.fp32_precision = settings.fp32_precision, asked
    try:
        product(torch.ones(2, 3), torch.ones(4, 3))
        assert (seen, settings.fp32_precision) == (["ieee"], asked)
    finally:
        settings.fp32_precision = before


def test_products_of_bf16_are_summed_and_returned_in_fp32():
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(size, 700, generator=generator).bfloat16() for size in (33, 47))
    truth = x.double() @ weight.double().T
    got = product(x, weight)
    assert got.dtype == torch.float32
    assert (got - truth).abs().max() < 1e-4
    assert ((x @ weight.T).float() - truth).abs().max() > 1e-2


def test_chunks_cover_the_rows_and_are_bounded():
    rows = list(products.chunks(1_000_000, 4 * 28_672))
    assert [rows[0].start, rows[-1].stop] == [0, 1_000_000]
    assert all(one.stop == other.start for one, other in pairwise(rows))
    assert max(chunk.stop - chunk.start for chunk in rows) * 4 * 28_672 <= products.TEMPORARY_BYTES
    assert list(products.chunks(0, 4)) == []
