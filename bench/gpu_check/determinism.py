"""The same bits: over many runs, for a row alone and in company, and ties of the LM head ranked as ties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_check.attention_problems import Attention, caterpillar, segments
from bench.gpu_check.cases import short
from bench.gpu_check.comparing import as_bits, same_bits
from bench.gpu_check.delta_problems import DeltaRule, ShortConvolution
from bench.gpu_check.failures import kernel_errors, said
from bench.gpu_check.head_problems import Head
from bench.gpu_check.problems import AddRows, CopySlots, Gated, Heads, NormRows, Problem, RowsProblem
from psyfast.ops.gpu.kernel_set import DeltaSizes, DeviceKernels, HeadsShape

Row = dict[str, Any]
RUNS = 20


def problems(dtype: torch.dtype, device: torch.device, *, large: bool) -> dict[str, Problem]:
    """One of each kernel; large: enough tiles to fill a device, so that their order varies."""
    trunk, every, tail, rows, vocab, hidden = (3000, 7, 3, 1500, 32_003, 512) if large else (90, 20, 2, 21, 611, 48)
    forest = [caterpillar(trunk, every, tail), *segments(trunk // 3, 5)]
    heads = (16, 4, 128) if large else (4, 2, 64)
    sizes = DeltaSizes(16, 32, 128, 128) if large else DeltaSizes(1, 2, 24, 40)
    return {
        "norm_rows": NormRows.random(rows, hidden, dtype, device),
        "heads": Heads.random(rows, HeadsShape(*heads), dtype, device, norm="head", bias=True),
        "copy_slots": CopySlots.random(rows // 8, heads[1], heads[2], dtype, device),
        "add_rows": AddRows.random(rows, hidden, device, bias=True, norm=True),
        "gated": Gated.random(rows, hidden, "silu", dtype, device),
        "attention": Attention.random(forest, *heads, dtype, device),
        "attention, window, cap, sinks": Attention.random(
            forest, *heads, dtype, device, window=50, soft_cap=3.0, sinks=True
        ),
        "short_convolution": ShortConvolution.random(forest, sizes, 4, device),
        "delta_rule": DeltaRule.random(forest, sizes, device),
        "linear_nll": Head.random(rows, vocab, hidden, dtype, device, num_options=5, soft_cap=20.0),
    }


def check_determinism(
    made: dict[str, Problem], kernels: DeviceKernels, is_late: Callable[[], bool], runs: int = RUNS
) -> Iterator[Row]:
    """Rows of findings: repeated runs, company, ties."""
    for name, problem in made.items():
        checks: dict[str, Callable[[], bool]] = {f"{runs} runs": lambda p=problem: repeats(p, kernels, runs)}
        if not isinstance(problem, (CopySlots, DeltaRule, ShortConvolution)):
            checks["alone and in company"] = lambda p=problem: company(p, kernels)
        if isinstance(problem, Head):
            checks["ties"] = lambda p=problem: ties(p, kernels)
        dtype = short(getattr(problem, "dtype", None) or _operand(problem))
        for what, holds in checks.items():
            row = {"operator": problem.operator, "case": f"{dtype} {name}: {what}"}
            if is_late():
                yield {**row, "left_out": True}
                continue
            try:
                yield {**row, "passed": holds()}
            except kernel_errors() as error:
                yield {**row, "passed": False, "error": said(error)}


def _operand(problem: Problem) -> torch.dtype:
    for name in ("q_THE", "y_ND", "k", "x_TD"):
        values = getattr(problem, name, None)
        if isinstance(values, Tensor):
            return values.dtype
    raise AssertionError(f"{problem.operator} has no operand")


def repeats(problem: Problem, kernels: DeviceKernels, runs: int) -> bool:
    """Whether every run has the first one's bits."""
    first = problem.run(kernels)
    return all(same_bits(first, problem.run(kernels)) for _ in range(runs - 1))


def company(problem: RowsProblem, kernels: DeviceKernels) -> bool:
    """Whether rows have their bits in any part of the batch: one, a few, every third, the last half."""
    whole, count = problem.run(kernels), problem.num_rows
    device = next(iter(whole.values())).device
    parts = [torch.tensor([count // 2]), torch.tensor([0, count - 1]), torch.arange(0, count, 3)]
    parts += [torch.arange(count // 2, count), torch.randperm(count)[: max(1, count // 5)].sort().values]
    return all(
        same_bits(problem.rows_of(whole, part), problem.only(part).run(kernels))
        for part in (part.unique().to(device) for part in parts)
    )


def ties(problem: Head, kernels: DeviceKernels) -> bool:
    """Head rows that are the same rank one after the other, lowest id first, with the same nll to the bit."""
    vocab, rows = len(problem.lm_head_VD), problem.num_rows
    ids = sorted({1, vocab // 3, vocab // 2 + 1, vocab - 1})
    head = problem.lm_head_VD.clone()
    head[ids] = head[ids[0]].clone()
    tied = replace(problem, lm_head_VD=head)
    found = [replace(tied, target_N=torch.full_like(tied.target_N, token)).run(kernels) for token in ids]
    ranks = torch.stack([result["rank"] for result in found])
    same_nll = all(torch.equal(as_bits(result["nll"]), as_bits(found[0]["nll"])) for result in found)
    steps = torch.arange(len(ids), device=ranks.device)[:, None].expand(-1, rows)
    return same_nll and torch.equal(ranks, ranks[:1] + steps)
