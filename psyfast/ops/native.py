"""The boundary of psyfast._native: loading it, checking tensors, and turning its exceptions into ours."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from psyfast.errors import BackendError

ELEMENT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_Result = TypeVar("_Result")


def load() -> ModuleType:
    """The compiled module; BackendError where it cannot be loaded."""
    try:
        from psyfast import _native
    except ImportError as error:
        raise BackendError(
            f"the compiled module psyfast._native cannot be loaded ({error}); build it with `pip install .`, "
            "or choose --backend reference"
        ) from error
    return _native


def guarded(call: Callable[[], _Result]) -> _Result:
    """What a native call returns; its refusals become BackendErrors."""
    try:
        return call()
    except ValueError as error:  # std::invalid_argument
        raise BackendError(str(error)) from error


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...]) -> None:
    """BackendError unless a tensor is on the CPU, contiguous, and of this type and shape (None: any size)."""
    if tensor.device.type != "cpu":
        raise BackendError(f"{name} is on {tensor.device}, expected the CPU; move it with .cpu()")
    if tensor.dtype != dtype:
        raise BackendError(f"{name} is {tensor.dtype}, expected {dtype}; convert it with .to({dtype})")
    wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
    matches = len(shape) == tensor.dim() and all(w in (None, g) for w, g in zip(shape, tensor.shape, strict=True))
    if not matches:
        raise BackendError(f"{name} has shape {list(tensor.shape)}, expected {wanted}; check what the caller passed")
    if not tensor.is_contiguous():
        raise BackendError(f"{name} has strides {tensor.stride()}, expected contiguous rows; call .contiguous()")
