"""gpu-check's own numerics and determinism on the interpreted kernels: the script that a GPU will run, run without one."""

import pytest
import torch

pytest.importorskip("psyfast.kernels.triton.attention", reason="the kernels of attention are not there yet")

from bench.gpu_check import determinism, numerics
from bench.gpu_check.cases import OPERATORS, all_cases
from psyfast.ops.gpu.triton_kernels import TritonKernels

CPU = torch.device("cpu")
DEAREST = {
    "attention": 6e6,
    "linear_nll": 2e6,
    "delta_rule": 2e6,
}  # an interpreted operation costs the same for one value as for many
EVERY = 7


@pytest.mark.parametrize("operator", OPERATORS)
def test_cases_pass(operator):
    cases = [case for case in all_cases() if case.operator == operator and case.cost < DEAREST.get(operator, 2e4)]
    few = cases[torch.randint(EVERY, ()).item() % len(cases) :: EVERY] or cases
    rows = list(numerics.check_cases(few, TritonKernels(), CPU, torch.seed() % 2**31, lambda: False))
    assert rows
    assert [row for row in rows if not row["passed"]] == []


def test_bits_are_kept():
    made = determinism.problems(torch.bfloat16, CPU, large=False)
    rows = list(determinism.check_determinism(made, TritonKernels(), lambda: False, runs=2))
    assert [row["case"] for row in rows if not row["passed"]] == []
