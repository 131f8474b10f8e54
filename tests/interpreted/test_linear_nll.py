"""linear_nll in Triton's interpreter: against an fp64 truth, bit against bit, on bad values, in memory.

Every generation's tiles are run: 80 loads by pointers, 90 by descriptors, 100 takes the products out in halves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from psyfast.kernels.triton import linear_nll
from psyfast.ops.gpu.kernel_set import ScoreTensors
from tests.ops.plain_kernels import PlainKernels

NAMES = [item.name for item in fields(ScoreTensors)]
VALUES = ["nll_N", "entropy_N", "option_nll_NK"]  # real numbers; the other two are ids
ALL_TYPES = [torch.bfloat16, torch.float16, torch.float32]
KINDS = [(90, torch.bfloat16), (80, torch.float32)]
ALL_KINDS = [(c, t) for c in (80, 90, 100) for t in ALL_TYPES if c == 80 or t != torch.float32]  # fp32 has one size

MIXED_KINDS = [(80, torch.bfloat16), (90, torch.float16), (100, torch.bfloat16), (80, torch.float32)]


@dataclass(frozen=True)
class Call:
    y: Tensor
    lm_head: Tensor
    target: Tensor
    options: Tensor
    traits: dict[str, Any] = field(default_factory=lambda: {"scale": 1.0, "soft_cap": None})

    def rows(self, index: Tensor) -> Call:
        return replace(self, y=self.y[index], target=self.target[index], options=self.options[index])


def make_call(
    num_rows: int, vocab: int, hidden: int, num_options: int, dtype: torch.dtype, **traits: float | None
) -> Call:
    return Call(
        torch.randn(num_rows, hidden).to(dtype),
        (torch.randn(vocab, hidden) / math.sqrt(hidden)).to(dtype),
        torch.randint(0, vocab, (num_rows,)),
        torch.randint(-1, vocab, (num_rows, num_options)),
        {"scale": 1.0, "soft_cap": None, **traits},
    )


def run(call: Call, capability: int, programs: int | None = None) -> ScoreTensors:
    nll, argmax, rank, entropy, option_nll = linear_nll.linear_nll(
        call.y, call.lm_head, call.target, call.options, **call.traits, capability=capability, programs=programs
    )
    return ScoreTensors(nll, argmax, rank, entropy, option_nll)


def plain(call: Call, compute: torch.dtype) -> ScoreTensors:
    return PlainKernels(compute=compute).linear_nll(call.y, call.lm_head, call.target, call.options, **call.traits)


def largest_error(scores: ScoreTensors, truth: ScoreTensors, name: str) -> float:
    ours, exact = getattr(scores, name).double(), getattr(truth, name)
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan()), name
    return (ours - exact).abs().nan_to_num().max().item() if exact.numel() else 0.0


def check_against_truth(call: Call, capability: int) -> ScoreTensors:
    """Our error is at most twice torch's in fp32, plus a few units in the last place of the sums behind a logit."""
    scores, truth, in_fp32 = run(call, capability), plain(call, torch.float64), plain(call, torch.float32)
    summed = (call.y.double().abs() @ call.lm_head.double().abs().T).nan_to_num(posinf=0.0) * abs(call.traits["scale"])
    for name in VALUES:
        largest = getattr(truth, name).abs().nan_to_num().max().item() if getattr(truth, name).numel() else 0.0
        scale = max([4.0, largest, *([summed.max().item()] if summed.numel() else [])])
        bound = 2 * largest_error(in_fp32, truth, name) + 4 * torch.finfo(torch.float32).eps * scale
        assert largest_error(scores, truth, name) <= bound, name
    return scores


def same_bits(a: ScoreTensors, b: ScoreTensors) -> bool:
    return all(
        torch.equal(x.contiguous().view(torch.int32), y.contiguous().view(torch.int32))
        for x, y in ((getattr(a, name), getattr(b, name)) for name in NAMES)
    )


def rows_of(scores: ScoreTensors, index: Tensor) -> ScoreTensors:
    return ScoreTensors(*(getattr(scores, name)[index] for name in NAMES))


@pytest.mark.parametrize(("capability", "dtype"), ALL_KINDS)
@pytest.mark.parametrize(
    ("num_rows", "vocab", "hidden", "num_options"),
    [
        (0, 70, 8, 2),
        (1, 1, 1, 0),
        (1, 5, 3, 1),
        (5, 257, 31, 64),
        (129, 1025, 72, 3),  # a row, a token and 8 dimensions more than tiles hold
        (127, 1023, 63, 2),
        (13, 2053, 64, 1),
    ],
)
def test_shapes(capability: int, dtype: torch.dtype, num_rows: int, vocab: int, hidden: int, num_options: int) -> None:
    scores = check_against_truth(make_call(num_rows, vocab, hidden, num_options, dtype), capability)
    assert scores.option_nll_NK.shape == (num_rows, num_options)
    assert (scores.argmax_N.dtype, scores.rank_N.dtype) == (torch.int64, torch.int64)


def test_large_vocabulary() -> None:
    check_against_truth(make_call(9, 70_001, 16, 4, torch.bfloat16), 90)


@pytest.mark.parametrize(("capability", "dtype"), [*KINDS, (100, torch.float16)])
@pytest.mark.parametrize(
    "traits",
    [
        {"scale": 0.25},
        {"scale": -3.0},
        {"soft_cap": 30.0},
        {"soft_cap": 0.5, "scale": 1.5},
        {"scale": 1e4},
        {"scale": 1e-4},
        {"scale": 1e4, "soft_cap": 30.0},
    ],
    ids=str,
)
def test_traits(capability: int, dtype: torch.dtype, traits: dict[str, float]) -> None:
    check_against_truth(make_call(20, 333, 40, 4, dtype, **traits), capability)


@pytest.mark.parametrize(("capability", "dtype"), MIXED_KINDS)
def test_ids_are_exact_where_logits_are(capability: int, dtype: torch.dtype) -> None:
    """Small integers: every sum is exact in any order, so rank and arg max must agree to the last tie."""
    call = make_call(50, 1500, 24, 3, dtype)
    call = replace(
        call,
        y=torch.randint(-1, 2, call.y.shape).to(dtype),
        lm_head=torch.randint(-2, 3, call.lm_head.shape).to(dtype),
    )
    scores, truth = run(call, capability), plain(call, torch.float64)
    assert torch.equal(scores.argmax_N, truth.argmax_N)
    assert torch.equal(scores.rank_N, truth.rank_N)
    assert (truth.rank_N > 0).any()


@pytest.mark.parametrize(("capability", "dtype"), MIXED_KINDS)
def test_ties_go_to_the_lowest_id(capability: int, dtype: torch.dtype) -> None:
    call = make_call(8, 2300, 40, 0, dtype)
    same = [5, 300, 700, 2049, 2299]
    call.lm_head[same[1:]] = call.lm_head[5].clone()
    tied = [replace(call, target=torch.full((8,), token)) for token in same]
    ranks = [run(one, capability).rank_N for one in tied]
    for before, after in itertools.pairwise(ranks):
        assert torch.equal(after, before + 1)
    call = replace(tied[-1], lm_head=call.lm_head[:1].repeat(2300, 1))
    scores = run(call, capability)
    assert scores.argmax_N.tolist() == [0] * 8
    assert scores.rank_N.tolist() == [2299] * 8
    torch.testing.assert_close(scores.nll_N, torch.full((8,), math.log(2300)), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.entropy_N, torch.full((8,), math.log(2300)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("capability", "dtype"), MIXED_KINDS)
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_the_target_has_one_logit(capability: int, dtype: torch.dtype, soft_cap: float | None) -> None:
    """The two products must agree to the bit: else the most probable token would be ahead of itself."""
    call = make_call(70, 1500, 152, 6, dtype, soft_cap=soft_cap, scale=1.7)
    call.options[:, 1] = call.options[:, 4] = call.target
    call.options[::3, 2] = -1
    scores = run(call, capability)
    assert torch.equal(scores.option_nll_NK[:, 1], scores.nll_N)
    assert torch.equal(scores.option_nll_NK[:, 4], scores.nll_N)
    assert torch.equal(scores.option_nll_NK.isnan(), call.options == -1)
    best = run(replace(call, target=scores.argmax_N), capability)
    assert (best.rank_N == 0).all()
    assert same_bits(replace(best, nll_N=scores.nll_N, rank_N=scores.rank_N), scores)


@pytest.mark.parametrize(("capability", "dtype"), [*KINDS, (100, torch.bfloat16)])
def test_bits_do_not_depend_on_company_order_or_programs(capability: int, dtype: torch.dtype) -> None:
    num_rows, vocab = (135 if dtype != torch.float32 else 70), 1100
    call = make_call(num_rows, vocab, 80, 3, dtype, soft_cap=20.0)
    whole = run(call, capability)
    for programs in (1, 100):
        assert same_bits(whole, run(call, capability, programs)), programs
    order = torch.randperm(num_rows)
    for part in (order, order[:1], order[3:-9], order[::2]):
        assert same_bits(rows_of(whole, part), run(call.rows(part), capability)), part
    # The comparison can fail: one element of one row.
    changed = call.y.clone()
    changed[7, 0] += 0.25
    assert not same_bits(whole, run(replace(call, y=changed), capability))


@pytest.mark.parametrize("num_rows", [1, 17 * 64])
def test_groups_of_row_tiles_cover_every_block(num_rows: int) -> None:
    """More tiles of rows than go through the blocks together, and a last group that is not full."""
    call = make_call(num_rows, 1100, 8, 0, torch.float32)
    whole = run(call, 80)
    last = torch.arange(max(0, num_rows - 3), num_rows)
    assert same_bits(rows_of(whole, last), run(call.rows(last), 80))
    assert torch.equal(whole.argmax_N, plain(call, torch.float64).argmax_N)


@pytest.mark.parametrize(("capability", "dtype"), [*KINDS, (100, torch.float16)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_row_gives_nan_and_spares_the_others(capability: int, dtype: torch.dtype, value: float) -> None:
    call = make_call(14, 1300, 32, 2, dtype)
    clean = run(call, capability)
    bad = replace(call, y=call.y.clone())
    bad.y[[0, 4, 13], [0, 29, 7]] = value
    scores = run(bad, capability)
    good = torch.tensor([row for row in range(14) if row not in (0, 4, 13)])
    assert same_bits(rows_of(clean, good), rows_of(scores, good))
    for row in (0, 4, 13):
        assert scores.nll_N[row].isnan()
        assert scores.entropy_N[row].isnan()
        assert scores.option_nll_NK[row].isnan().all()
        assert scores.argmax_N[row] == scores.rank_N[row] == -1


@pytest.mark.parametrize(("capability", "dtype"), [*KINDS, (100, torch.float16)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 255, 256, 1024, 1299])
def test_one_bad_logit_shows(capability: int, dtype: torch.dtype, value: float, column: int) -> None:
    call = make_call(7, 1300, 32, 0, dtype)
    call.y[:, 3] = 1.0
    call.lm_head[column, 3] = value
    scores = run(call, capability)
    assert scores.nll_N.isnan().all()
    assert scores.entropy_N.isnan().all()
    assert scores.argmax_N.tolist() == scores.rank_N.tolist() == [-1] * 7


@pytest.mark.parametrize(("capability", "dtype"), [*KINDS, (100, torch.float16)])
def test_minus_infinite_logits_count_as_impossible(capability: int, dtype: torch.dtype) -> None:
    """Heads may rule tokens out by −inf; whole tiles and blocks of them must not turn into NaN."""
    call = make_call(9, 2300, 8, 2, dtype)
    call.y[:, 0] = call.y[:, 0].abs() + 0.1
    call.lm_head[:1100] = torch.tensor([-math.inf, *[0.0] * 7])
    call = replace(call, target=call.target.clamp_min(1100), options=call.options.clamp_min(1100))
    assert check_against_truth(call, capability).nll_N.isfinite().all()
    impossible = run(replace(call, target=torch.zeros(9, dtype=torch.int64)), capability)
    assert (impossible.nll_N == math.inf).all()
    assert (impossible.rank_N == 1200).all()
    call.lm_head[:] = call.lm_head[0].clone()
    nothing = run(call, capability)
    assert nothing.nll_N.isnan().all()
    assert nothing.entropy_N.isnan().all()
    assert nothing.argmax_N.tolist() == nothing.rank_N.tolist() == [-1] * 9


@pytest.mark.parametrize("largest", [0.0, 1.0, 60.0, 3000.0])
def test_the_sums_follow_the_largest_logit(largest: float) -> None:
    """Tokens in ascending, then descending order of their logits: a rescale at every tile, then at none."""
    ramp = torch.linspace(-1, 1, 2100)[:, None] * torch.ones(1, 8) * largest / 8
    for lm_head in (ramp, ramp.flip(0)):
        call = replace(make_call(3, 2100, 8, 2, torch.float32), y=torch.ones(3, 8), lm_head=lm_head.contiguous())
        check_against_truth(call, 80)


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that torch makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_of_rows_times_vocabulary_is_made() -> None:
    call = make_call(300, 5000, 8, 2, torch.bfloat16)
    with LargestTensor() as largest:
        run(call, 90)
    assert 0 < largest.elements <= call.lm_head.nbytes  # the interpreter copies its arguments' storage, in bytes
    with LargestTensor() as largest:
        plain(call, torch.float32)
    assert largest.elements == 300 * 5000
