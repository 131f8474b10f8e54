"""The CUDA kernels' module compiled for the CPU: kernels/cuda as it is, against its emulation header."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]


@cache
def _build(build_dir: Path) -> str:
    """Builds, once and then incrementally; returns what went wrong, or nothing."""
    configure = [
        "cmake",
        "-S",
        str(ROOT),
        "-B",
        str(build_dir),
        "-G",
        "Ninja",
        "-DPSY_CUDA_EMULATED=ON",
        "-DPSY_PYTHON=OFF",
    ]
    configure += [
        "-DPSY_WERROR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    for command in (configure, ["cmake", "--build", str(build_dir), "--target", "_cuda_emulated"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return done.stdout[-4000:] + done.stderr[-4000:]
    return ""


@cache
def emulated_module() -> ModuleType:
    """The module _cuda_emulated, built if need be; skips where there is no compiler."""
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"the CUDA kernels are not emulated: {tool} is absent")
    build_dir = ROOT / "build" / f"cuda-emulated-{sys.implementation.cache_tag}"
    failure = _build(build_dir)
    assert not failure, failure
    (path,) = build_dir.glob("_cuda_emulated*.so")
    spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
