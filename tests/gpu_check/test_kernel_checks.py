"""gpu-check's numerics and determinism on the CPU: plain kernels pass every case, and each deliberate bug is found."""

from dataclasses import dataclass, replace

import pytest
import torch

from bench.gpu_check import determinism, numerics
from bench.gpu_check.cases import OPERATORS, Case, all_cases
from bench.gpu_check.comparing import judge, largest_error, same_bits
from bench.gpu_check.problems import NormRows
from tests.ops.plain_kernels import PlainKernels

CPU = torch.device("cpu")
AFFORDABLE = 2e7
DEAREST = {**dict.fromkeys(OPERATORS, 2e5), "attention": 6e7, "linear_nll": 6e6, "delta_rule": 2e7}


def never():
    return False


def run(kernels, operators=OPERATORS, *, late=never, cost=AFFORDABLE):
    cases = [case for case in all_cases() if case.operator in operators and case.cost < cost]
    return list(numerics.check_cases(cases, kernels, CPU, torch.seed() % 2**31, late))


def test_every_operator_has_cases_in_every_lane():
    kinds = {(case.operator, case.label.split()[0]) for case in all_cases()}
    assert {operator for operator, _ in kinds} == set(OPERATORS)
    both = {(operator, lane) for operator in OPERATORS for lane in ("bf16", "fp32")}
    in_fp32 = ("add_rows", "short_convolution", "delta_rule")  # in both lanes
    assert both - kinds == {(operator, "bf16") for operator in in_fp32}
    assert ("linear_nll", "fp16") in kinds
    labels = [(case.operator, case.label) for case in all_cases()]
    assert len(labels) == len(set(labels))


def test_plain_kernels_pass_all_that_a_cpu_can_afford():
    rows = run(PlainKernels())
    assert len(rows) > 200
    assert [row for row in rows if not row["passed"]] == []
    assert max(row["share_of_bound"] for row in rows) > 0.2  # the bounds are near what rounding does


@dataclass(frozen=True)
class WindowOneTooWide(PlainKernels):
    def attention(self, *operands, window, **options):
        return super().attention(*operands, window=None if window is None else window + 1, **options)


@dataclass(frozen=True)
class ForgetsTheCap(PlainKernels):
    def attention(self, *operands, soft_cap, **options):
        return super().attention(*operands, soft_cap=None, **options)

    def linear_nll(self, *operands, soft_cap, **options):
        return super().linear_nll(*operands, soft_cap=None, **options)


@dataclass(frozen=True)
class ForgetsTheSinks(PlainKernels):
    def attention(self, *operands, sinks_H, **options):
        return super().attention(*operands, sinks_H=None, **options)


@dataclass(frozen=True)
class ReadsTheNextPage(PlainKernels):
    def attention(self, q, kv, *operands, **options):
        return super().attention(q, tuple(pages.roll(1, 0) for pages in kv), *operands, **options)


@dataclass(frozen=True)
class TiesGoToTheHighestId(PlainKernels):
    def linear_nll(self, y, head, target, options, **more):
        last = len(head) - 1
        flipped = super().linear_nll(
            y, head.flip(0), last - target, torch.where(options < 0, -1, last - options), **more
        )
        return replace(flipped, argmax_N=torch.where(flipped.argmax_N < 0, -1, last - flipped.argmax_N))


@dataclass(frozen=True)
class LosesABlock(PlainKernels):
    def linear_nll(self, y, head, *operands, **more):
        cut = head.clone()
        cut[len(head) - 1 :] = 0
        return super().linear_nll(y, cut, *operands, **more)


@dataclass(frozen=True)
class RoundsTheSum(PlainKernels):
    def norm_rows(self, x, norm, dtype):
        return super().norm_rows(x, norm, torch.bfloat16).to(dtype)

    def add_rows(self, x, y, bias, norm):
        super().add_rows(x, y.bfloat16().float(), bias, norm)

    def gated(self, gate_up, activation, dtype):
        return super().gated(gate_up.bfloat16().float(), activation, dtype)


@dataclass(frozen=True)
class WritesOneSlotTooFar(PlainKernels):
    def heads(self, *operands):
        q = super().heads(*operands)
        if operands[6] is not None:
            operands[6][0][:, :, -1] = 0
        return q

    def copy_slots(self, kv, runs):
        super().copy_slots(kv, runs + torch.tensor([0, 0, 0, 1]) * (runs[:, 3:] < 64))


@dataclass(frozen=True)
class ForgetsTheFork(PlainKernels):
    """Every segment starts from nothing."""

    def short_convolution(self, qkv, path, *operands):
        rows = torch.arange(path.shape[1])
        return super().short_convolution(qkv, torch.where(path < rows - len(path), -1, path), *operands)

    def delta_rule(self, qkv, log_decay, write, plan, sizes):
        pieces = plan.pieces_P3.clone()
        pieces[:, 2] = -1
        return super().delta_rule(qkv, log_decay, write, replace(plan, pieces_P3=pieces), sizes)


@dataclass(frozen=True)
class RaisesABadRow(PlainKernels):
    def linear_nll(self, y, *operands, **more):
        return super().linear_nll(y.nan_to_num(0, 0, 0), *operands, **more)


@pytest.mark.parametrize(
    ("kernels", "operators"),
    [
        (WindowOneTooWide(), ["attention"]),
        (ForgetsTheCap(), ["attention", "linear_nll"]),
        (ForgetsTheSinks(), ["attention"]),
        (ReadsTheNextPage(), ["attention"]),
        (TiesGoToTheHighestId(), ["linear_nll"]),
        (LosesABlock(), ["linear_nll"]),
        (RoundsTheSum(), ["norm_rows", "add_rows", "gated"]),
        (WritesOneSlotTooFar(), ["heads", "copy_slots"]),
        (ForgetsTheFork(), ["short_convolution", "delta_rule"]),
        (RaisesABadRow(), ["linear_nll"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PlainKernels) else "",
)
def test_a_bug_is_found(kernels, operators):
    """Bugs of some cases alone, so that every kind of case must be among those that are run."""
    for operator in operators:
        assert any(not row["passed"] for row in run(kernels, [operator], cost=DEAREST[operator])), operator


def test_a_kernel_that_raises_fails_its_case_and_no_other():
    class Raises(PlainKernels):
        def gated(self, gate_up, activation, dtype):
            if activation == "gelu":
                raise RuntimeError("CUDA error: an illegal\n  memory access")
            return super().gated(gate_up, activation, dtype)

    rows = run(Raises(), ["gated"])
    failed = [row for row in rows if not row["passed"]]
    assert {row["error"] for row in failed} == {"RuntimeError: CUDA error: an illegal memory access"}
    assert 0 < len(failed) < len(rows)


def test_what_the_time_has_no_room_for_is_left_out_and_said():
    clock = iter([False, False, True, True])
    rows = list(numerics.check_cases(list(all_cases())[:4], PlainKernels(), CPU, 1, lambda: next(clock)))
    assert [row.get("left_out", False) for row in rows] == [False, False, True, True]


def test_the_bound_is_torchs_error_twice_and_the_floor():
    truth, of_torch = {"y": torch.zeros(2)}, {"y": torch.tensor([0.0, 1.0])}
    (verdict,) = judge({"y": torch.tensor([2.4, 0.0])}, truth, of_torch, {"y": 0.5})
    assert verdict.passed
    assert (verdict.error, verdict.bound) == (pytest.approx(2.4), 2.5)
    (verdict,) = judge({"y": torch.tensor([2.6, 0.0])}, truth, of_torch, {"y": 0.5})
    assert not verdict.passed
    (verdict,) = judge({"y": torch.tensor([0.1, 0.0])}, truth, of_torch, {})
    assert not verdict.passed


def test_nan_is_an_error_where_it_is_not_wanted_and_none_where_it_is():
    nan, inf = float("nan"), float("inf")
    assert largest_error(torch.tensor([nan, 1.0]), torch.tensor([nan, 1.5])) == 0.5
    assert largest_error(torch.tensor([nan]), torch.tensor([1.0])) == inf
    assert largest_error(torch.tensor([1.0]), torch.tensor([nan])) == inf
    assert largest_error(torch.tensor([inf]), torch.tensor([inf])) == 0.0
    assert largest_error(torch.zeros(2), torch.zeros(3)) == inf
    assert not same_bits({"y": torch.tensor([0.0])}, {"y": torch.tensor([-0.0])})
    assert same_bits({"y": torch.tensor([nan])}, {"y": torch.tensor([nan])})


def test_plain_kernels_repeat_themselves_and_keep_ties():
    made = determinism.problems(torch.float32, CPU, large=False)
    rows = list(determinism.check_determinism(made, PlainKernels(), never, runs=3))
    assert {row["case"].split(": ")[1] for row in rows} == {"3 runs", "alone and in company", "ties"}
    # torch's own products and vector functions give a row other bits in other company: our kernels must do better.
    torchs = ("attention", "linear_nll")
    assert all(row["passed"] for row in rows if row["operator"] not in torchs or "company" not in row["case"]), rows


class Restless(PlainKernels):
    """A unit in the last place, now and then; and another order of ties."""

    calls = 0

    def norm_rows(self, x, norm, dtype):
        Restless.calls += 1
        y = super().norm_rows(x, norm, dtype)
        return y if Restless.calls % 5 else torch.nextafter(y, torch.full_like(y, 9.0))

    def linear_nll(self, *operands, **more):
        return TiesGoToTheHighestId().linear_nll(*operands, **more)


def test_other_bits_and_other_ties_are_found():
    made = determinism.problems(torch.float32, CPU, large=False)
    rows = list(determinism.check_determinism(made, Restless(), never, runs=8))
    failed = [row["case"] for row in rows if not row["passed"]]
    assert "fp32 norm_rows: 8 runs" in failed
    assert "fp32 linear_nll: ties" in failed


@dataclass(frozen=True)
class AsksTheWholeBatch(PlainKernels):
    """A row's scale comes from all rows: right to fp32's rounding, and other bits in other company."""

    def norm_rows(self, x, norm, dtype):
        size = x.abs().max()
        return super().norm_rows(x / size, replace(norm, eps=float(norm.eps / size**2)), dtype)


def test_a_row_that_depends_on_its_company_is_found():
    made = {"norm_rows": NormRows.random(64, 40, torch.float32, CPU)}
    rows = list(determinism.check_determinism(made, AsksTheWholeBatch(), never, runs=2))
    assert [row["passed"] for row in rows] == [True, False]


def test_problems_can_be_made_of_any_case():
    for case in list(all_cases())[::7]:
        if case.cost < AFFORDABLE:
            assert isinstance(case, Case)
            problem = case.make(CPU)
            assert problem.operator == case.operator
            assert problem.work.num_bytes >= 0
