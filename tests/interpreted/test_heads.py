"""heads in Triton's interpreter: against an fp64 truth, bit against bit, and no slot written that is not its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from psyfast.kernels.triton import heads
from psyfast.ops.gpu.kernel_set import DeviceNorm, HeadsShape, HeadsTraits
from tests.ops.plain_kernels import PlainKernels

NUM_PAGES, NUM_POSITIONS = 4, 90


@dataclass(frozen=True)
class Case:
    """H, K and E; R rotated pairs (None: not rotated); which norms there are."""

    H: int
    K: int
    E: int
    R: int | None
    q_norm: bool = False
    k_norm: bool = False
    together: bool = False
    bias: bool = True
    unit_offset: bool = False

    def traits(self) -> HeadsTraits:
        def norm(wanted: bool, num_heads: int) -> DeviceNorm | None:
            width = self.E * (num_heads if self.together else 1)
            return DeviceNorm(torch.randn(width), 1e-5, self.unit_offset) if wanted else None

        return HeadsTraits(
            torch.randn((self.H + 2 * self.K) * self.E) if self.bias else None,
            norm(self.q_norm, self.H),
            norm(self.k_norm, self.K),
            self.together,
        )


CASES = [
    Case(4, 2, 64, 32),
    Case(3, 1, 80, 40, bias=False),
    Case(8, 2, 128, 64, True, True),
    Case(4, 4, 96, 48, True, True, unit_offset=True),
    Case(2, 1, 256, 128, False, True),
    Case(4, 2, 64, 16, True, False),  # a part of a head turns
    Case(5, 5, 24, None, True, True),
    Case(3, 3, 7, 2),
    Case(6, 2, 32, 16, True, True, together=True),
    Case(6, 2, 32, None, False, True, together=True, unit_offset=True),
    Case(0, 2, 32, 16, False, True),
    Case(4, 0, 32, 16, True, False),
    Case(4, 0, 32, 16, True, False, together=True),
    Case(0, 3, 32, 16, False, True, together=True),
]


def run(kernel: Any, case: Case, traits: HeadsTraits, inputs: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """q and the pages, which held −7 before."""
    exact = isinstance(kernel, PlainKernels) and kernel.compute == torch.float64
    pages = tuple(
        torch.full((NUM_PAGES, case.K, 64, case.E), -7.0, dtype=torch.float64 if exact else dtype) for _ in range(2)
    )
    rest = (
        inputs["cos_sin"],
        inputs["positions"],
        inputs["slots"] if case.K else None,
        pages if case.K else None,
        dtype,
    )
    if isinstance(kernel, PlainKernels):
        q = kernel.heads(inputs["qkv"], HeadsShape(case.H, case.K, case.E), traits, *rest)
    else:
        norms = (traits.q_norm, traits.k_norm, traits.norm_heads_together)
        q = heads.heads(inputs["qkv"], (case.H, case.K), case.E, traits.bias, *norms, *rest)
    return q, *pages


def make_inputs(case: Case, num_tokens: int) -> dict[str, Any]:
    angles = None if case.R is None else torch.rand(NUM_POSITIONS, case.R) * 6
    return {
        "qkv": torch.randn(num_tokens, (case.H + 2 * case.K) * case.E),
        "positions": torch.randint(0, NUM_POSITIONS, (num_tokens,)),
        "slots": torch.randperm(NUM_PAGES * 64)[:num_tokens],
        "cos_sin": None if angles is None else (angles.cos(), angles.sin()),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_truth(case: Case, dtype: torch.dtype) -> None:
    for num_tokens in (0, 1, 37):
        traits, inputs = case.traits(), make_inputs(case, num_tokens)
        ours = run(heads, case, traits, inputs, dtype)
        truth = run(PlainKernels(compute=torch.float64), case, traits, inputs, dtype)
        in_torch = run(PlainKernels(), case, traits, inputs, dtype)
        for mine, exact, theirs in zip(ours, truth, in_torch, strict=True):
            assert mine.dtype == dtype
            assert mine.shape == exact.shape
            assert torch.equal(mine == -7.0, theirs == -7.0)
            if exact.numel():
                error, torch_error = ((x.double() - exact).abs().max().item() for x in (mine, theirs))
                assert error <= 2 * torch_error + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("case", [CASES[2], CASES[8]], ids=str)
def test_bits_do_not_depend_on_company(case: Case) -> None:
    traits, inputs = case.traits(), make_inputs(case, 41)
    q, k, v = run(heads, case, traits, inputs, torch.float32)
    order = torch.randperm(41)
    for part in (order, order[:1], order[5:30]):
        few = {name: values if name == "cos_sin" else values[part] for name, values in inputs.items()}
        few_q, few_k, few_v = run(heads, case, traits, few, torch.float32)
        assert torch.equal(few_q, q[part])
        written = few_k != -7.0
        assert torch.equal(few_k[written], k[written])
        assert torch.equal(few_v[few_v != -7.0], v[few_v != -7.0])
