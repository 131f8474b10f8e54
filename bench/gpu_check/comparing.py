"""When a kernel's result passes: its error against fp64 is at most twice torch's own in that type, plus a small floor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Results = Mapping[str, Tensor]
"""Outputs by name: real numbers, or (int64) ids that must be equal."""


@dataclass(frozen=True)
class Verdict:
    """One output of one case. error, torch_error: largest absolute; bound: what error may be at most."""

    output: str
    passed: bool
    error: float
    torch_error: float
    bound: float


def judge(got: Results, truth: Results, of_torch: Results, floors: Mapping[str, float]) -> list[Verdict]:
    """Verdicts on all outputs of the truth. An output without a floor is compared bit for bit."""
    return [
        _same(name, got[name], truth[name])
        if name not in floors
        else _near(name, got[name], truth[name], of_torch[name], floors[name])
        for name in truth
    ]


def largest_error(got: Tensor, truth: Tensor) -> float:
    """Of two tensors alike in shape; infinite where one is NaN or an infinity and the other is not the same."""
    if got.shape != truth.shape:
        return math.inf
    if not truth.numel():
        return 0.0
    got, truth = got.double(), truth.double()
    alike = (got.isnan() & truth.isnan()) | (got == truth)
    return float(torch.where(alike, 0.0, (got - truth).abs()).nan_to_num(nan=math.inf, posinf=math.inf).max())


def _near(name: str, got: Tensor, truth: Tensor, of_torch: Tensor, floor: float) -> Verdict:
    error, torch_error = largest_error(got, truth), largest_error(of_torch, truth)
    bound = 2.0 * (torch_error if math.isfinite(torch_error) else 0.0) + floor
    return Verdict(name, error <= bound, error, torch_error, bound)


def _same(name: str, got: Tensor, truth: Tensor) -> Verdict:
    if got.shape != truth.shape:
        return Verdict(name, False, math.inf, 0.0, 0.0)
    differing = int((got != truth.to(got.dtype)).sum())
    return Verdict(name, differing == 0, float(differing), 0.0, 0.0)


def same_bits(a: Results, b: Results) -> bool:
    """Whether all outputs agree to the bit, the bits of NaN included."""
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and x.shape == b[name].shape and torch.equal(as_bits(x), as_bits(b[name]))
        for name, x in a.items()
    )


def as_bits(values: Tensor) -> Tensor:
    """The values' bytes as integers."""
    return values.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def largest(values: Tensor) -> float:
    """Largest finite magnitude, 0 for none."""
    finite = values[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
