"""Builds psyfast._cuda for the GPU that is here, with nvcc, into a folder of its own: nothing else, and nothing installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu_check.machine import tool

ROOT = Path(__file__).resolve().parents[2]


def architecture(capability: tuple[int, int]) -> str:
    """As nvcc and CMake name it: 9.0 → 90a, with the instructions of that generation alone."""
    number = f"{capability[0]}{capability[1]}"
    return f"{number}a" if capability >= (9, 0) else number


def commands(capability: tuple[int, int], folder: Path, jobs: int) -> list[list[str]]:
    """Configure and build; the module lands in folder/native."""
    import pybind11

    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        "cmake",
        *("-S", str(ROOT), "-B", str(folder / "cmake"), *generator),
        "-DPSY_PYTHON=OFF",
        "-DPSY_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={tool('nvcc')}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architecture(capability)}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'native'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    return [configure, ["cmake", "--build", str(folder / "cmake"), "--target", "_cuda", "-j", str(jobs)]]


def build(capability: tuple[int, int], folder: Path, timeout_s: float) -> str | None:
    """None, or what went wrong: the last lines of what the compiler said, all of which stand in folder/build.log."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "build.log"
    with log.open("w", encoding="utf-8") as out:
        for command in commands(capability, folder, os.cpu_count() or 1):
            try:
                done = subprocess.run(command, stdout=out, stderr=out, check=False, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                return f"building psyfast._cuda took more than {timeout_s:.0f} s: see {log}"
            if done.returncode:
                out.flush()
                last = " | ".join(log.read_text(encoding="utf-8", errors="replace").split("\n")[-8:])
                return f"building psyfast._cuda failed: {last}; see {log}"
    return None
