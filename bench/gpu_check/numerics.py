"""Every kernel of a backend against fp64: the worst case of each operator, and every case that fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from bench.gpu_check.cases import Case
from bench.gpu_check.comparing import judge
from bench.gpu_check.failures import kernel_errors, said
from bench.gpu_check.head_problems import Head
from psyfast.ops.gpu.kernel_set import DeviceKernels

Row = dict[str, Any]


def check_cases(
    cases: Iterable[Case], kernels: DeviceKernels, device: torch.device, seed: int, is_late: Callable[[], bool]
) -> Iterator[Row]:
    """A row a case: passed or not, errors, bounds; a case that raised says what. Those after the time is up are left out."""
    for number, case in enumerate(cases):
        if is_late():
            yield {"case": case.label, "operator": case.operator, "left_out": True}
            continue
        torch.manual_seed(seed + number)
        try:
            yield {"case": case.label, "operator": case.operator, "seed": seed + number, **check(case, kernels, device)}
        except kernel_errors() as error:
            row = {"case": case.label, "operator": case.operator, "seed": seed + number}
            yield {**row, "passed": False, "error": said(error)}


def check(case: Case, kernels: DeviceKernels, device: torch.device) -> Row:
    """One case: the verdicts on all its outputs."""
    problem = case.make(device)
    truth, of_torch = problem.truth(), problem.in_torch()
    floors = problem.floors(truth)
    got = problem.run(kernels)
    verdicts = judge(got, truth, of_torch, floors)
    misplaced = 0
    if isinstance(problem, Head) and not problem.exact:
        misplaced = problem.misplaced(got, 2 * floors["nll"])
    worst = max((_share(v.error, v.bound) for v in verdicts), default=0.0)
    return {
        "passed": all(v.passed for v in verdicts) and not misplaced,
        "share_of_bound": worst,
        "misplaced_ids": misplaced,
        "outputs": [asdict(v) for v in verdicts],
    }


def _share(error: float, bound: float) -> float:
    if error == 0.0:
        return 0.0
    return error / bound if bound else math.inf
