"""What a kernel may die of without taking the check along: written down as a finding, in one line."""

from __future__ import annotations

from importlib.util import find_spec

from psyfast.errors import PsyfastError


def kernel_errors() -> tuple[type[Exception], ...]:
    """What launching, compiling or checking raises: torch's and CUDA's errors are RuntimeErrors, Triton has its own."""
    found: tuple[type[Exception], ...] = (
        PsyfastError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        ImportError,
        OSError,
    )
    if find_spec("triton") is not None:
        from triton.errors import TritonError

        found = (*found, TritonError)
    return found


def said(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
