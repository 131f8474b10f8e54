"""The element-wise kernels in Triton's interpreter: against an fp64 truth, bit against bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from psyfast.kernels.triton import rows
from psyfast.ops.gpu.kernel_set import DeviceNorm
from tests.ops.plain_kernels import ACTIVATIONS, PlainKernels

TRUTH, IN_FP32 = PlainKernels(compute=torch.float64), PlainKernels()
TYPES = [torch.bfloat16, torch.float32]
SHAPES = [(0, 8), (1, 1), (3, 31), (33, 577), (5, 2048), (2, 4099), (1, 16_384)]


def check(ours: Tensor, truth: Tensor, in_torch: Tensor) -> None:
    """At most twice torch's error, and a few units in the last place of fp32."""
    assert ours.shape == truth.shape
    if ours.numel():
        error, torch_error = ((x.double() - truth).abs().max().item() for x in (ours, in_torch))
        assert error <= 2 * torch_error + 4 * torch.finfo(torch.float32).eps * truth.abs().max().item()


def make_norm(width: int, unit_offset: bool) -> DeviceNorm:
    return DeviceNorm(torch.randn(width), 1e-5, unit_offset)


@pytest.mark.parametrize("dtype", [*TYPES, torch.float16])
@pytest.mark.parametrize("unit_offset", [None, False, True])
@pytest.mark.parametrize(("T", "D"), SHAPES)
def test_norm_rows(dtype: torch.dtype, unit_offset: bool | None, T: int, D: int) -> None:
    x, norm = torch.randn(T, D) * 3, None if unit_offset is None else make_norm(D, unit_offset)
    ours = rows.norm_rows(x, norm, dtype)
    assert ours.dtype == dtype
    check(ours, TRUTH.norm_rows(x, norm, dtype), IN_FP32.norm_rows(x, norm, dtype))
    if norm is None:
        assert torch.equal(ours, x.to(dtype))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("unit_offset", [None, False, True])
@pytest.mark.parametrize(("T", "D"), SHAPES)
def test_add_rows(has_bias: bool, unit_offset: bool | None, T: int, D: int) -> None:
    x, y, bias = torch.randn(T, D), torch.randn(T, D), torch.randn(D) if has_bias else None
    norm = None if unit_offset is None else make_norm(D, unit_offset)
    ours, truth, in_fp32 = x.clone(), x.double(), x.clone()
    rows.add_rows(ours, y, bias, norm)
    TRUTH.add_rows(truth, y, bias, norm)
    IN_FP32.add_rows(in_fp32, y, bias, norm)
    check(ours, truth, in_fp32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(("T", "F"), [(0, 8), (1, 1), (3, 31), (9, 577), (2, 2049), (1, 53_248)])
def test_gated(dtype: torch.dtype, activation: str, T: int, F: int) -> None:
    gate_up = torch.randn(T, 2 * F) * 4
    ours = rows.gated(gate_up, activation, dtype)
    assert ours.dtype == dtype
    check(ours, TRUTH.gated(gate_up, activation, dtype), IN_FP32.gated(gate_up, activation, dtype))


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_activations_keep_a_relative_error(activation: str) -> None:
    """From tiny to large, where small results must not drown in the absolute error of large ones."""
    for scale in (1e-20, 1e-3, 0.3, 3.0, 60.0):
        gate_up = torch.cat([torch.randn(1, 4096) * scale, torch.ones(1, 4096)], 1)
        ours, truth = (kernels.gated(gate_up, activation, torch.float32) for kernels in (rows, TRUTH))
        in_fp32 = IN_FP32.gated(gate_up, activation, torch.float32)
        check(ours, truth, in_fp32)
        negative = gate_up[:, :4096] < 0  # there the factor goes to zero
        check(ours[negative], truth[negative], in_fp32[negative])


@pytest.mark.parametrize("D", [48, 577, 4099])
def test_bits_do_not_depend_on_company(D: int) -> None:
    x, norm = torch.randn(50, D), make_norm(D, True)
    whole = rows.norm_rows(x, norm, torch.float32)
    order = torch.randperm(50)
    for part in (order, order[:1], order[3:37]):
        assert torch.equal(rows.norm_rows(x[part], norm, torch.float32), whole[part])
    assert not torch.equal(rows.norm_rows(x * (1 + 1e-6), norm, torch.float32), whole)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_row_spares_the_others(value: float) -> None:
    x, norm = torch.randn(9, 40), make_norm(40, False)
    clean = rows.norm_rows(x, norm, torch.float32)
    x[4, 7] = value
    bad = rows.norm_rows(x, norm, torch.float32)
    assert bad[4].isnan().any()
    bad[4] = clean[4]
    assert torch.equal(bad, clean)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [8, 80, 256])
def test_copy_slots(dtype: torch.dtype, head_dim: int) -> None:
    ours = tuple(torch.randn(7, 3, 64, head_dim).to(dtype) for _ in range(2))
    expected = tuple(pages.clone() for pages in ours)
    runs = torch.tensor([[0, 4, 0, 64], [1, 5, 3, 17], [2, 6, 63, 64], [2, 3, 9, 9]])
    rows.copy_slots(ours, runs)
    TRUTH.copy_slots(expected, runs)
    for copied, wanted in zip(ours, expected, strict=True):
        assert torch.equal(copied, wanted)
    rows.copy_slots(ours, runs[:0])
    assert torch.equal(ours[0], expected[0])
