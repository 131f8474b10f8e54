"""Compiles kernels/cuda with nvcc for every generation, without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from tests.builds.binaries import Binary, read

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "cuda"
ARCHITECTURES = {80: "sm_80", 90: "sm_90a", 100: "sm_100"}


def nvcc() -> str | None:
    """CUDA's compiler, where there is one."""
    return shutil.which("nvcc")


@cache
def toolchain() -> str:
    """`nvcc 13.0.88`."""
    version = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", version)
    assert found, version
    return f"nvcc {found[1]}"


def jobs() -> list[tuple[Path, int]]:
    """(source, capability) of every binary."""
    return [(path, capability) for path in sorted(KERNELS.glob("*.cu")) for capability in ARCHITECTURES]


def compiled(job: tuple[Path, int]) -> list[Binary]:
    """A source's kernels for a generation."""
    source, capability = job
    with tempfile.TemporaryDirectory(prefix="psyfast-cubin-") as folder:
        cubin = Path(folder) / "kernel.cubin"
        flags = ["-std=c++17", "-O3", f"-arch={ARCHITECTURES[capability]}", f"-I{KERNELS}"]
        subprocess.run([str(nvcc()), *flags, "-cubin", "-o", cubin, source], check=True)
        binaries = read(cubin, "cuda", capability, toolchain())
    return [replace(binary, kernel=f"{source.stem}/{plain_name(binary.kernel)}") for binary in binaries]


def plain_name(symbol: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    name = subprocess.run(["c++filt", "-p", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(
        r"\(anonymous namespace\)::|\b(?:\w+::)+|^void |, (?=\S)", lambda m: "," if m[0] == ", " else "", name
    )
