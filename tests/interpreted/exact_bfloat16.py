"""What Triton's interpreter lacks to be believed: bf16, and products whose bits are the kernel's own.

The interpreter keeps bf16 as uint16. As it comes, `tl.dot`, `+` and `tl.sum` work on these bit patterns and a cast from fp32
truncates, silently. Here casts between fp32 and bf16 are exact or round to nearest even, tl.dot converts its operands,
and every other use of a bf16 value in arithmetic raises: on a GPU, too, our kernels compute in fp32.

Products of bf16, fp16 and fp32 are exact in fp64. So a dot is summed in fp64 and rounded once: NumPy's fp32 product gives
a row other bits at another place of the tile, which no tensor core does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceScanOpInterface, TensorHandle

_ROUNDED_TO = {tl.float16: 11, tl.bfloat16: 8, tl.float32: 24}  # significant bits of the types that a dot takes


def widened(bits: np.ndarray) -> np.ndarray:
    """bf16 as uint16 → fp32, exact: the upper half of its bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """fp32 → bf16 as uint16, to nearest, ties to even; NaN stays NaN (its payload as torch gives it)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


class Bfloat16ArithmeticError(TypeError):
    """A kernel computes with bf16 outside of tl.dot."""


def _refuse_bfloat16(operation: str, *handles: Any) -> None:
    for handle in handles:
        if handle.dtype.scalar == tl.bfloat16:
            raise Bfloat16ArithmeticError(f"{operation} on bf16, expected fp32; cast with .to(tl.float32) first")


class ExactBuilder(InterpreterBuilder):
    """The interpreter's operations, bf16 done right or refused."""

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        source, wanted = src.dtype.scalar, dst_type.scalar
        if (source, wanted) == (tl.bfloat16, tl.float32):
            return TensorHandle(widened(src.data), tl.float32)
        if (source, wanted) == (tl.float32, tl.bfloat16):
            return TensorHandle(narrowed(src.data), tl.bfloat16)
        if source != wanted and tl.bfloat16 in (source, wanted):
            raise Bfloat16ArithmeticError(f"a cast from {source} to {wanted}, expected one through fp32")
        return super().cast_impl(src, dst_type)

    # The class's own casts are lambdas that call cast_impl, but this one converts by itself.
    def create_fp_to_fp(self, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar):
            return self.cast_impl(self.cast_impl(src, tl.float32), dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def create_dot(self, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        assert a.dtype.scalar == b.dtype.scalar, f"tl.dot of {a.dtype} and {b.dtype}"
        assert a.dtype.scalar in _ROUNDED_TO and d.dtype.scalar == tl.float32, "tl.dot: sums must be fp32"
        if a.dtype.scalar == tl.float32 and input_precision != interpreter._ir.INPUT_PRECISION.IEEE:
            raise TypeError("tl.dot of fp32 rounds to TF32 on a GPU; pass input_precision='ieee'")
        a_data, b_data = (widened(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
        with np.errstate(all="ignore"):  # inf − inf and overflow are values, as on a GPU
            sums = np.matmul(a_data.astype(np.float64), b_data.astype(np.float64)) + d.data
            return TensorHandle(sums.astype(np.float32), tl.float32)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        _refuse_bfloat16(op.__name__, lhs, rhs)
        with np.errstate(all="ignore"):
            return super().binary_op(lhs, rhs, op)

    def unary_op(self, arg: Any, op: Any) -> Any:
        _refuse_bfloat16(op.__name__, arg)
        with np.errstate(all="ignore"):
            return super().unary_op(arg, op)

    def ternary_op(self, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        if op is not np.where:  # a selection moves bits
            _refuse_bfloat16(op.__name__, lhs, rhs, other)
        return super().ternary_op(lhs, rhs, other, op)


def _refusing(name: str) -> Any:
    original = getattr(InterpreterBuilder, name)

    def operation(self: Any, *args: Any) -> Any:
        _refuse_bfloat16(name, *(arg for arg in args if isinstance(arg, TensorHandle)))
        with np.errstate(all="ignore"):
            return original(self, *args)

    return operation


# Operations that do not go through the three above.
for _name in ("create_fma", "create_fabs", "create_erf", "create_rsqrt", "create_clampf", "create_atomic_rmw"):
    setattr(ExactBuilder, _name, _refusing(_name))


def _checked_reduction(original: Any) -> Any:
    def apply(self: Any, values: Any) -> Any:
        for value in values if isinstance(values, tuple) else (values,):
            if value.dtype.scalar == tl.bfloat16:
                raise Bfloat16ArithmeticError("a reduction over bf16, expected fp32; cast with .to(tl.float32) first")
        return original(self, values)

    return apply


def _loop_bounds_as_numbers(original: Any) -> Any:
    """Triton 3.6 makes a Python number of an array of one element, which NumPy 2.4 has given up."""

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch


def install() -> None:
    """Makes the interpreter of this process exact; to be called before the first launch, once."""
    assert type(interpreter.interpreter_builder) is InterpreterBuilder
    interpreter.interpreter_builder.__class__ = ExactBuilder
    ReduceScanOpInterface.apply = _checked_reduction(ReduceScanOpInterface.apply)
    interpreter._patch_lang_tensor = _loop_bounds_as_numbers(interpreter._patch_lang_tensor)
