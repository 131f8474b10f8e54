"""The kernels' contract in plain torch, tests/ops/plain_kernels.py, in fp64 and in fp32."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch

from psyfast.ops.gpu.kernel_set import DeviceKernels

ROOT = Path(__file__).resolve().parents[2]


def plain_kernels(compute: torch.dtype) -> DeviceKernels:
    """By its path: `tests` is a namespace, and any installed package of that name would be found before it."""
    name = "psyfast_plain_kernels"
    if name not in sys.modules:
        spec = spec_from_file_location(name, ROOT / "tests" / "ops" / "plain_kernels.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    kernels: DeviceKernels = sys.modules[name].PlainKernels(compute=compute)
    return kernels


EXACT = plain_kernels(torch.float64)
IN_TORCH = plain_kernels(torch.float32)
