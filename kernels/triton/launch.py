"""What a launch asks of the device, and what an ahead-of-time build says in its place."""

from __future__ import annotations

import os

import torch
from torch import Tensor

INTERPRETED_CAPABILITY = 80  # as if the interpreter were the oldest generation: no descriptors unless asked for
INTERPRETED_PROGRAMS = 3  # few, so that a persistent program meets several tiles

_TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def capability_of(tensor: Tensor) -> int:
    """80, 90, 100, 120 …: the generation of a tensor's device."""
    if tensor.device.type != "cuda":
        assert os.environ.get("TRITON_INTERPRET") == "1", f"a Triton kernel needs a CUDA device, got {tensor.device}"
        return INTERPRETED_CAPABILITY
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def num_programs(tensor: Tensor) -> int:
    """Programs of a persistent grid: one a multiprocessor."""
    if tensor.device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def type_name(dtype: torch.dtype) -> str:
    """Triton's name of an operand type."""
    return _TYPE_NAMES[dtype]
