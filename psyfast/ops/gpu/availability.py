"""Whether a GPU backend can be used here, and if not, why: one sentence each."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from psyfast.errors import BackendError
from psyfast.ops.gpu.kernel_set import DeviceKernels

GPU_BACKENDS = ("triton", "cuda")
LEAST_CAPABILITY = (8, 0)
LEAST_TORCH = (2, 9)
"""Has fp32 results of bf16 products, and a setting for how fp32 ones are computed."""
UNPROVEN = "compiled and emulated, never run on a GPU: auto takes reference, --backend triton or cuda these kernels"


def is_interpreted() -> bool:
    """Whether Triton's interpreter is asked for, which runs its kernels on the CPU: for checks."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(backend: str, device: torch.device | None = None) -> str | None:
    """What keeps a backend from running on a device (default: the current CUDA device); None where nothing does."""
    if _torch_version() < LEAST_TORCH:
        return f"torch {torch.__version__} is too old for its products: 2.9 is the least"
    missing = _why_no_triton() if backend == "triton" else _why_no_cuda_module()
    if missing is not None:
        return missing
    if backend == "triton" and is_interpreted() and (device is None or device.type == "cpu"):
        return None
    if device is not None and device.type != "cuda":
        return f"it runs on CUDA devices, and the device is {device}: give --device cuda"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        return f"the device's compute capability is {found[0]}.{found[1]}, and 8.0 is the least"
    return None


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _why_no_triton() -> str | None:
    if find_spec("triton") is None:
        return 'Triton is not installed: pip install "triton>=3.6"'
    if find_spec("psyfast.kernels.triton.attention") is None:
        return "the kernels' sources are not there: install psyfast as a whole"
    return None


def _why_no_cuda_module() -> str | None:
    from psyfast.ops.gpu.cuda_kernels import load

    try:
        load()
    except BackendError as error:
        return str(error)
    return None


def kernels_of(backend: str, device: torch.device) -> DeviceKernels:
    """A backend's kernels for a device. Raises BackendError where `why_not` has a reason."""
    reason = why_not(backend, device)
    if reason is not None:
        raise BackendError(f"backend '{backend}' cannot be used: {reason}; or choose --backend reference")
    if backend == "triton":
        from psyfast.ops.gpu.triton_kernels import TritonKernels

        return TritonKernels()
    from psyfast.ops.gpu.cuda_kernels import CudaKernels

    return CudaKernels()


def version_of(backend: str) -> str:
    """Of what compiled a backend's kernels."""
    if backend == "triton":
        triton: Any = import_module("triton")
        return f"Triton {triton.__version__}"
    return f"CUDA {import_module('psyfast._cuda').CUDA_VERSION}"
