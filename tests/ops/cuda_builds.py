"""The CUDA kernels' module compiled for the CPU: kernels/cuda as it is, against its emulation header."""

from __future__ import annotations

import shutil
from types import ModuleType

import pytest
from built_modules import built_module


def emulated_module() -> ModuleType:
    """The module _cuda_emulated, built if need be; skips where there is no compiler."""
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"the CUDA kernels are not emulated: {tool} is absent")
    return built_module(
        "_cuda_emulated", "cuda-emulated", "-DPSY_CUDA_EMULATED=ON", "-DPSY_PYTHON=OFF", "-DPSY_WERROR=ON"
    )
