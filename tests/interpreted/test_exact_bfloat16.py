"""The interpreter's bf16 against torch's, to the bit, and what it must refuse."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from exact_bfloat16 import ExactBuilder
from torch import Tensor
from triton.runtime import interpreter

ALL_BF16 = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


@triton.jit
def cast_kernel(source, result, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(result + at, tl.load(source + at).to(result.dtype.element_ty))


@triton.jit
def dot_kernel(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None], tl.arange(0, K)
    product = tl.dot(tl.load(a + m * K + k[None]), tl.load(b + k[:, None] * N + n), input_precision=PRECISION)
    tl.store(c + m * N + n, product)


@triton.jit
def arithmetic_kernel(source, result, OPERATION: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(source + at)
    if OPERATION == "add":
        x = x + x
    elif OPERATION == "multiply by a number":
        x = x * 2.0
    elif OPERATION == "negate":
        x = -x
    elif OPERATION == "compare":
        x = tl.where(x > 0.5, x, x - x)
    elif OPERATION == "maximum":
        x = tl.maximum(x, -x)
    elif OPERATION == "sum":
        x = x + tl.sum(x, 0)
    elif OPERATION == "abs":
        x = tl.abs(x)
    elif OPERATION == "fma":
        x = tl.fma(x, x, x)
    tl.store(result + at, x)


@triton.jit
def selection_kernel(source, result, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(result + at, tl.where(at % 2 == 0, tl.load(source + at), tl.load(source)))


def cast(source: Tensor, dtype: torch.dtype) -> Tensor:
    result = torch.empty(source.shape, dtype=dtype)
    cast_kernel[(1,)](source, result, source.numel())
    return result


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


def test_the_builder_is_ours() -> None:
    assert type(interpreter.interpreter_builder) is ExactBuilder


def test_every_bf16_widens_exactly() -> None:
    wide = cast(ALL_BF16, torch.float32)
    kept = ~ALL_BF16.isnan()
    assert same_bits(wide[kept], ALL_BF16.float()[kept])
    assert wide[~kept].isnan().all()


def test_fp32_rounds_to_the_nearest_even() -> None:
    """Every bf16 value's neighbourhood: the value, the ties beside it, and one fp32 step to either side of each."""
    around = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    bits = (torch.arange(1 << 16, dtype=torch.int64)[:, None] << 16) + around
    values = bits.flatten()[: 1 << 18].to(torch.int32).view(torch.float32)
    for part in (values, torch.randn(1 << 16), torch.randn(1 << 16) * 1e-39):
        rounded, expected = cast(part.contiguous(), torch.bfloat16), part.bfloat16()
        kept = ~part.isnan()
        assert same_bits(rounded[kept], expected[kept])
        assert rounded[~kept].isnan().all()
    # As it comes, the interpreter truncates: this value tells the two apart.
    assert cast(torch.full((16,), 1.0 + 2.0**-7 - 2.0**-20), torch.bfloat16)[0] == 1.0 + 2.0**-7


def test_fp16_goes_through_fp32() -> None:
    values = torch.randn(1024).half()
    assert same_bits(cast(values, torch.bfloat16), values.bfloat16())
    values = torch.randn(1024).bfloat16()
    assert same_bits(cast(values, torch.float16), values.half())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot_is_the_exact_sum_rounded_once(dtype: torch.dtype) -> None:
    a, b, c = torch.randn(32, 64).to(dtype), torch.randn(64, 16).to(dtype), torch.empty(32, 16)
    dot_kernel[(1,)](a, b, c, 32, 16, 64, "ieee")
    assert same_bits(c, (a.double() @ b.double()).float())
    swapped = torch.empty(32, 16)
    order = torch.randperm(32)
    dot_kernel[(1,)](a[order].contiguous(), b, swapped, 32, 16, 64, "ieee")
    assert same_bits(swapped, c[order])


def test_a_tf32_dot_is_refused() -> None:
    a, b, c = torch.randn(16, 16), torch.randn(16, 16), torch.empty(16, 16)
    with pytest.raises(interpreter.InterpreterError, match="TF32"):
        dot_kernel[(1,)](a, b, c, 16, 16, 16, "tf32")


@pytest.mark.parametrize(
    "operation", ["add", "multiply by a number", "negate", "compare", "maximum", "sum", "abs", "fma"]
)
def test_other_arithmetic_on_bf16_raises(operation: str) -> None:
    source, result = torch.rand(16).bfloat16(), torch.empty(16).bfloat16()
    arithmetic_kernel[(1,)](source.float(), torch.empty(16), operation, 16)
    with pytest.raises(interpreter.InterpreterError, match="bf16"):
        arithmetic_kernel[(1,)](source, result, operation, 16)


def test_a_selection_moves_bits() -> None:
    source, result = torch.randn(16).bfloat16(), torch.empty(16).bfloat16()
    selection_kernel[(1,)](source, result, 16)
    assert same_bits(result, torch.where(torch.arange(16) % 2 == 0, source, source[:1]))
