"""What this machine has: a GPU or the reason why not, what can be built and run on it, and its facts for the report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OLDEST_CAPABILITY = (8, 0)
OLDEST = {"torch": (2, 11), "triton": (3, 6)}
GIB = 2**30


def why_no_gpu() -> str | None:
    """A sentence that begins with "no GPU", or None where there is one that the kernels are made for."""
    import torch

    if torch.version.cuda is None:
        return f"no GPU: this torch ({torch.__version__}) was built without CUDA; install one that has it"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        reasons = [" ".join(str(warning.message).split()) for warning in caught]
        return f"no GPU: torch {torch.__version__} sees no CUDA device. {_driver(reasons)}".strip()
    name, found = torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0)
    if found < OLDEST_CAPABILITY:
        return f"no GPU that fits: {name} has compute capability {found[0]}.{found[1]}, expected 8.0 (A100) or newer"
    return None


def _driver(reasons: list[str]) -> str:
    """What torch or the driver says about its absence."""
    if reasons:
        return reasons[0]
    if shutil.which("nvidia-smi") is None:
        return "There is no NVIDIA driver here (no nvidia-smi)."
    return f"The driver says: {_output(['nvidia-smi', '-L']) or 'nothing'}"


def facts() -> Row:
    """Device, driver and versions. Only where there is a GPU."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info(0)
    return {
        "device": properties.name,
        "capability": list(torch.cuda.get_device_capability(0)),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": total,
        "free_memory_bytes": free,
        "l2_bytes": properties.L2_cache_size,
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "power_limit": _output(["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader"]),
        "cuda": torch.version.cuda,
        "nvcc": nvcc_version(),
        "python": platform.python_version(),
        "host": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {
            name: found
            for name in ("torch", "triton", "numpy", "flashinfer-python", "liger-kernel")
            if (found := _version(name)) is not None
        },
    }


def notes(found: Row) -> list[str]:
    """What is older than what the kernels were tried with."""
    return [
        f"{name} {found['versions'][name]} is older than {'.'.join(map(str, oldest))}, with which the kernels were tried"
        for name, oldest in OLDEST.items()
        if name in found["versions"] and _numbers(found["versions"][name]) < oldest
    ]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, under CUDA_HOME, or where the toolkit is usually installed."""
    homes = [Path(home) for key in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(key))]
    for home in [*homes, Path("/usr/local/cuda")]:
        for candidate in (home / "bin" / name, home / name / name):
            if os.access(candidate, os.X_OK):
                return str(candidate)
    return shutil.which(name)


def nvcc_version() -> str | None:
    """The last line but one of `nvcc --version`, as NVIDIA prints its release; None without nvcc."""
    nvcc = tool("nvcc")
    lines = _output([nvcc, "--version"]).splitlines() if nvcc else []
    return next((line.strip() for line in lines if "release" in line), None)


def why_no_triton() -> str | None:
    """None where Triton can be imported."""
    return None if find_spec("triton") is not None else f"Triton is not installed for {sys.executable}"


def why_no_cuda_build() -> str | None:
    """None where psyfast._cuda can be built."""
    if tool("nvcc") is None:
        return "no nvcc on the path, under CUDA_HOME or in /usr/local/cuda"
    missing = [name for name in ("cmake", "g++") if shutil.which(name) is None]
    missing += ["pybind11"] if find_spec("pybind11") is None else []
    return f"not installed: {', '.join(missing)}" if missing else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(said: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(
        int("".join(c for c in part if c.isdigit()) or 0) for part in said.split("+", maxsplit=1)[0].split(".")[:2]
    )


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return (done.stdout or done.stderr).strip()
