"""linear_nll on every ISA level: against an fp64 truth, bit against bit, on bad values and bad arguments, in memory."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from built_modules import ROOT
from native_builds import LEVELS, Level
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import cpu, native, reference_head
from psyfast.ops.records import HeadScores, HeadWeights, Lane, Norm
from psyfast.ops.reference import rms_norm

LANES = list(Lane)
NAMES = [field.name for field in fields(HeadScores)]
VALUES = ["nll_N", "entropy_N", "option_nll_NK"]  # real numbers; the other two are ids


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    print("torch seed", torch.seed())  # shown when a test fails


@pytest.fixture(params=LEVELS, ids=str)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Level:
    request.param.activate(monkeypatch)
    return request.param


def make_head(vocab: int, hidden: int, **changes: object) -> HeadWeights:
    head = HeadWeights(Norm(torch.rand(hidden) + 0.5, 1e-6), torch.randn(vocab, hidden) / math.sqrt(hidden))
    return replace(head, **changes)


def make_inputs(num_rows: int, vocab: int, hidden: int, num_options: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(num_rows, hidden),
        torch.randint(0, vocab, (num_rows,)),
        torch.randint(-1, vocab, (num_rows, num_options)),
    )


def run(level: Level, head: HeadWeights, lane: Lane, inputs: tuple[Tensor, ...], threads: int = 2) -> HeadScores:
    return cpu.linear_nll(inputs[0], cpu.pack_head(head, lane), *inputs[1:], num_threads=threads, isa=level.isa)


def largest_error(scores: HeadScores, truth: HeadScores, name: str) -> float:
    ours, exact = getattr(scores, name).double(), getattr(truth, name)
    assert torch.equal(ours.isnan(), exact.isnan()), name
    return (ours - exact).abs().nan_to_num().max().item() if exact.numel() else 0.0


def away_from_ties(x_ND: Tensor, norm: Norm) -> Tensor:
    """Rows whose normalised values are no near ties between two bf16 neighbours.

    There fp32 and fp64 would round one operand to different sides, which moves a logit by a unit in bf16's last place:
    a difference between two truths and not an error of either.
    """
    for _ in range(100):
        beyond_bf16 = rms_norm(x_ND.double(), norm).float().view(torch.int32) & 0xFFFF  # 0x8000: the tie
        near = (beyond_bf16 - 0x8000).abs() < 32
        if not near.any():
            return x_ND
        x_ND = torch.where(near, x_ND * 1.01, x_ND)
    raise AssertionError("no such rows were found")


def check_against_truth(level: Level, head: HeadWeights, lane: Lane, inputs: tuple[Tensor, ...]) -> HeadScores:
    """Our error against fp64 is at most twice torch's fp32 error, plus a floor of a few units in the last place.

    Units of what is rounded: the result, and the products whose sum a logit is, which a scale may make far larger.
    """
    x, *ids = inputs
    if lane is Lane.BF16:
        x = away_from_ties(x, head.norm)
    scores = run(level, head, lane, (x, *ids))
    truth = reference_head.linear_nll(x.double(), head, *ids, lane=lane)
    torch_fp32 = reference_head.linear_nll(x, head, *ids, lane=lane)
    terms = rms_norm(x.double(), head.norm).abs() @ head.lm_head_VD.double().abs().T * abs(head.scale)
    summed = terms.max().item() if terms.numel() else 0.0
    for name in VALUES:
        largest = getattr(truth, name).abs().nan_to_num().max().item() if getattr(truth, name).numel() else 0.0
        floor = 4 * torch.finfo(torch.float32).eps * max(4.0, largest, summed if math.isfinite(summed) else 0.0)
        bound = 2 * largest_error(torch_fp32, truth, name) + floor
        assert largest_error(scores, truth, name) <= bound, name
    return scores


def same_bits(a: HeadScores, b: HeadScores) -> bool:
    return all(
        torch.equal(x.view(torch.int32), y.view(torch.int32))
        for x, y in ((getattr(a, name), getattr(b, name)) for name in NAMES)
    )


def rows_of(scores: HeadScores, index: Tensor) -> HeadScores:
    return HeadScores(*(getattr(scores, name)[index].contiguous() for name in NAMES))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    ("num_rows", "vocab", "hidden", "num_options"),
    [
        (0, 70, 8, 2),
        (1, 1, 1, 0),
        (1, 5, 3, 1),
        (2, 64, 16, 1),
        (3, 65, 15, 3),
        (5, 1024, 31, 64),
        (7, 1025, 32, 64),
        (13, 1009, 37, 3),
        (101, 2053, 67, 5),
    ],
)
def test_shapes(level: Level, lane: Lane, num_rows: int, vocab: int, hidden: int, num_options: int) -> None:
    scores = check_against_truth(
        level, make_head(vocab, hidden), lane, make_inputs(num_rows, vocab, hidden, num_options)
    )
    assert scores.option_nll_NK.shape == (num_rows, num_options)


@pytest.mark.parametrize("lane", LANES)
def test_large_vocabulary(level: Level, lane: Lane) -> None:
    check_against_truth(level, make_head(151_936, 12), lane, make_inputs(9, 151_936, 12, 4))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.25},
        {"scale": -3.0},
        {"soft_cap": 30.0},
        {"soft_cap": 0.5, "scale": 1.5},
        {"norm": Norm(torch.linspace(-0.5, 0.5, 40), 1e-2, unit_offset=True)},
        {"scale": 1e4},
        {"scale": 1e-4},
        {"scale": 1e4, "soft_cap": 30.0},
    ],
    ids=str,
)
def test_traits(level: Level, lane: Lane, changes: dict[str, object]) -> None:
    check_against_truth(level, make_head(333, 40, **changes), lane, make_inputs(20, 333, 40, 4))


@pytest.mark.parametrize("lane", LANES)
def test_ids_are_exact_where_logits_are(level: Level, lane: Lane) -> None:
    """Small integers: every sum is exact in any order, so rank and arg max must agree to the last tie."""
    num_rows, vocab, hidden = 50, 1500, 24
    head = HeadWeights(Norm(torch.ones(hidden), 0.0), torch.randint(-2, 3, (vocab, hidden)).float())
    x = torch.randint(0, 2, (num_rows, hidden)).float() * 2 - 1  # ±1: the norm leaves them as they are
    _, target, options = make_inputs(num_rows, vocab, hidden, 3)
    scores = run(level, head, lane, (x, target, options))
    truth = reference_head.linear_nll(x.double(), head, target, options, lane=lane)
    assert torch.equal(scores.argmax_N, truth.argmax_N)
    assert torch.equal(scores.rank_N, truth.rank_N)
    assert (truth.rank_N > 0).any()


@pytest.mark.parametrize("lane", LANES)
def test_ties_go_to_the_lowest_id(level: Level, lane: Lane) -> None:
    head = make_head(3000, 33)
    head.lm_head_VD[[700, 2049, 2999]] = head.lm_head_VD[5].clone()
    x, _, _ = make_inputs(8, 3000, 33)
    options = torch.tensor([[5, 700, 2049, 2999]]).repeat(8, 1)
    ranks = [run(level, head, lane, (x, options[:, k].contiguous(), options)).rank_N for k in range(4)]
    for k in range(3):
        assert torch.equal(ranks[k + 1], ranks[k] + 1)
    same = head.lm_head_VD[:1].repeat(3000, 1)
    scores = run(level, replace(head, lm_head_VD=same), lane, (x, options[:, 3].contiguous(), options))
    assert scores.argmax_N.tolist() == [0] * 8
    assert scores.rank_N.tolist() == [2999] * 8
    torch.testing.assert_close(scores.nll_N, torch.full((8,), math.log(3000)), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.entropy_N, torch.full((8,), math.log(3000)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_options_have_the_targets_bits(level: Level, lane: Lane, soft_cap: float | None) -> None:
    x, target, options = make_inputs(40, 2500, 45, 6)
    options[:, 1] = options[:, 4] = target
    options[::3, 2] = -1
    scores = run(level, make_head(2500, 45, soft_cap=soft_cap, scale=1.7), lane, (x, target, options))
    assert torch.equal(scores.option_nll_NK[:, 1], scores.nll_N)
    assert torch.equal(scores.option_nll_NK[:, 4], scores.nll_N)
    assert torch.equal(scores.option_nll_NK.isnan(), options == -1)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
def test_types(level: Level, lane: Lane, weight_dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    head = make_head(200, 51)
    head = replace(head, lm_head_VD=head.lm_head_VD.to(weight_dtype))
    x, target, options = make_inputs(11, 200, 51, 2)
    check_against_truth(level, head, lane, (x, target.to(id_dtype), options.to(id_dtype)))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("hidden", [37, 512])
def test_bits_do_not_depend_on_batch_order_or_threads(level: Level, lane: Lane, hidden: int) -> None:
    num_rows, vocab = (220, 2200) if not level.emulated else (40, 1200)
    head, inputs = make_head(vocab, hidden, soft_cap=20.0), make_inputs(num_rows, vocab, hidden, 3)
    whole = run(level, head, lane, inputs, threads=1)
    for threads in (2, 3, 7):
        assert same_bits(whole, run(level, head, lane, inputs, threads)), threads
    order = torch.randperm(num_rows)
    for part in (order, order[:1], order[:5], order[3:22], order[::2]):
        shuffled = tuple(tensor[part].contiguous() for tensor in inputs)
        assert same_bits(rows_of(whole, part), run(level, head, lane, shuffled)), part
    # The comparison can fail: one element moves by a unit, far more than either lane rounds away.
    changed = inputs[0].clone()
    changed[7, 0] += 1.0
    assert not same_bits(whole, run(level, head, lane, (changed, *inputs[1:])))


def test_more_rows_than_a_wave() -> None:
    level, num_rows = Level("portable"), 2048 + 77
    head, inputs = make_head(90, 8), make_inputs(num_rows, 90, 8, 2)
    whole = run(level, head, Lane.FP32, inputs)
    last = torch.arange(2040, num_rows)
    alone = run(level, head, Lane.FP32, tuple(tensor[last].contiguous() for tensor in inputs))
    assert same_bits(rows_of(whole, last), alone)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_row_gives_nan_and_spares_the_others(level: Level, lane: Lane, value: float) -> None:
    head, (x, target, options) = make_head(1300, 30), make_inputs(14, 1300, 30, 2)
    clean = run(level, head, lane, (x, target, options))
    bad = x.clone()
    bad[[0, 4, 13], [0, 29, 7]] = value
    scores = run(level, head, lane, (bad, target, options))
    good = torch.tensor([row for row in range(14) if row not in (0, 4, 13)])
    assert same_bits(rows_of(clean, good), rows_of(scores, good))
    for row in (0, 4, 13):
        assert scores.nll_N[row].isnan()
        assert scores.entropy_N[row].isnan()
        assert scores.option_nll_NK[row].isnan().all()
        assert scores.argmax_N[row] == scores.rank_N[row] == -1
    truth = reference_head.linear_nll(bad, head, target, options, lane=lane)
    assert torch.equal(truth.nll_N.isnan(), scores.nll_N.isnan())
    assert torch.equal(truth.rank_N == -1, scores.rank_N == -1)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("column", [0, 63, 64, 1024, 1299])
def test_a_nan_anywhere_in_the_head_shows_in_every_row(level: Level, lane: Lane, column: int) -> None:
    head, inputs = make_head(1300, 30), make_inputs(7, 1300, 30)
    head.lm_head_VD[column, 3] = math.nan
    scores = run(level, head, lane, inputs)
    assert scores.nll_N.isnan().all()
    assert scores.entropy_N.isnan().all()


@pytest.mark.parametrize("lane", LANES)
def test_minus_infinite_logits_count_as_impossible(level: Level, lane: Lane) -> None:
    """Heads may rule tokens out by −inf; whole panels and blocks of them must not turn into NaN."""
    head = HeadWeights(Norm(torch.ones(4), 1e-6), torch.randn(2300, 4))
    head.lm_head_VD[:1100] = torch.tensor([-math.inf, 0.0, 0.0, 0.0])
    x, target, options = make_inputs(9, 2300, 4, 2)
    x[:, 0] = x[:, 0].abs() + 0.1
    target = target.clamp_min(1100)
    scores = check_against_truth(level, head, lane, (x, target, options.clamp_min(1100)))
    assert scores.nll_N.isfinite().all()


def test_exp_and_tanh_keep_their_error_bounds(level: Level) -> None:
    x = torch.cat([-torch.rand(1 << 16) * 88, -torch.rand(1 << 16), torch.zeros(16)]).contiguous()
    out = torch.empty_like(x)
    native.load().exp_nonpositive(level.isa, x.data_ptr(), out.data_ptr(), x.numel())
    exact = x.double().exp()
    kept = x >= -87.33
    assert ((out - exact) / exact)[kept].abs().max() < 2e-7
    assert (out[~kept] == 0).all()
    assert (out[-16:] == 1).all()
    x = torch.cat([torch.randn(1 << 16) * 4, torch.randn(1 << 16) * 1e-3, torch.tensor([math.inf, -math.inf] * 8)])
    out = torch.empty_like(x)
    native.load().tanh_any(level.isa, x.data_ptr(), out.data_ptr(), x.numel())
    exact = x.double().tanh()
    assert ((out - exact) / exact).nan_to_num().abs().max() < 3e-7
    special = torch.tensor([math.nan, -math.inf, -1e30, -88.0] * 4)
    out = torch.empty(16)
    native.load().exp_nonpositive(level.isa, special.data_ptr(), out.data_ptr(), 16)
    assert out[:4].isnan().tolist() == [True, False, False, False]
    assert (out[1:4] == 0).all()


BAD_CALLS = [
    ({"x": torch.zeros(3, 7)}, "x has shape"),
    ({"x": torch.zeros(3, 8, dtype=torch.float64)}, "expected torch.float32"),
    ({"x": torch.zeros(8, 3).T}, "contiguous"),
    ({"target": torch.tensor([0, 1])}, "target has shape"),
    ({"target": torch.tensor([0, 1, 50])}, "the target of row 2 is 50, but the head has 50 tokens; expected 0 to 49"),
    ({"target": torch.tensor([0, -1, 3])}, "the target of row 1 is -1"),
    ({"target": torch.zeros(3)}, "target is torch.float32, expected torch.int64"),
    ({"options": torch.tensor([[1], [-2], [3]])}, "option 0 of row 1 is -2"),
    ({"options": torch.tensor([[1], [2], [50]])}, "or -1 for none"),
    ({"options": torch.zeros(3, 65, dtype=torch.int64)}, "65 option columns, expected 0 to 64"),
    ({"num_threads": 0}, "num_threads is 0"),
    ({"isa": "avx9"}, "unknown ISA level 'avx9'"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CALLS, ids=[message for _, message in BAD_CALLS])
def test_bad_arguments(changes: dict[str, object], message: str) -> None:
    packed = cpu.pack_head(make_head(50, 8), Lane.FP32)
    call = {"x": torch.zeros(3, 8), "target": torch.zeros(3, dtype=torch.int64), "options": None, "num_threads": 1}
    call.update(changes)
    with pytest.raises(BackendError, match=message):
        cpu.linear_nll(call.pop("x"), packed, call.pop("target"), call.pop("options"), **call)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (make_head(50, 8, soft_cap=-1.0), "soft_cap is -1.0"),
        (make_head(50, 8, lm_head_VD=torch.zeros(50, 8, dtype=torch.float16)), "lm_head is torch.float16"),
        (make_head(50, 8, lm_head_VD=torch.zeros(8, 50).T), "contiguous"),
        (make_head(50, 8, lm_head_VD=torch.zeros(50)), "lm_head has shape"),
        (make_head(50, 8, lm_head_VD=torch.zeros(50, 9)), "norm weight has shape"),
        (make_head(50, 8, lm_head_VD=torch.zeros(0, 8)), "expected both sizes to be positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_heads(head: HeadWeights, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        cpu.pack_head(head, Lane.BF16)


MEMORY_PROGRAM = """
import resource, torch
from psyfast.ops import cpu, native
from psyfast.ops.records import HeadWeights, Lane, Norm
num_rows, vocab, hidden = 8192, 60_000, 8
packed = cpu.pack_head(HeadWeights(Norm(torch.ones(hidden), 1e-6), torch.randn(vocab, hidden)), Lane.FP32)
x, target = torch.randn(num_rows, hidden), torch.randint(0, vocab, (num_rows,))
cpu.linear_nll(x[:8], packed, target[:8])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cpu.linear_nll(x, packed, target)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_hold_the_logits() -> None:
    """[N, V] in fp32 would be 1.97 GB here; the call may grow the process by 50 MB."""
    done = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 50_000  # KiB
