"""Builds the native modules with CMake, and says where the Triton kernels' package lies; the rest is in pyproject.toml.

psyfast._native always; psyfast._cuda, which takes nvcc, where -DPSY_CUDA=ON stands in CMAKE_ARGS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def cmake_args() -> list[str]:
    """What the user gives to CMake."""
    return os.environ.get("CMAKE_ARGS", "").split()


def wants_cuda(arguments: list[str]) -> bool:
    """Whether CMake's arguments switch the CUDA kernels on: -DPSY_CUDA=ON, its type and CMake's other words for ON; the last one counts."""
    wanted = False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.partition(":")[0].removeprefix("-D") == "PSY_CUDA":
            wanted = value.upper() in ("ON", "1", "YES", "TRUE", "Y")
    return wanted


class CMakeBuild(build_ext):
    """Configures once into build/cmake-<platform>-<python> and lets ninja decide what is to be rebuilt."""

    def build_extensions(self) -> None:
        """Builds the extensions of this package; each is a target of its own name."""
        self.build_dir = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.configure()
        super().build_extensions()

    def configure(self) -> None:
        """Tells CMake where the modules go, which Python they are for, and what the user wants."""
        import pybind11

        out_dir = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        self.build_dir.mkdir(parents=True, exist_ok=True)
        command = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(self.build_dir),
            "-G",
            "Ninja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out_dir}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DPSY_CUDA=OFF",  # CMake remembers; a build without it must not ask for nvcc because the last one did
            *cmake_args(),
        ]
        # The build's isolated environment, if there is one, may have brought its own ninja along.
        subprocess.run(command, check=True)

    def build_extension(self, ext: Extension) -> None:
        """Builds one of them."""
        target = ext.name.rpartition(".")[2]
        subprocess.run(["cmake", "--build", str(self.build_dir), "--target", target], check=True)


MODULES = ["psyfast._native", *(["psyfast._cuda"] if wants_cuda(cmake_args()) else [])]

setup(
    ext_modules=[Extension(name, sources=[]) for name in MODULES],
    cmdclass={"build_ext": CMakeBuild},
    packages=[*find_packages(include=["psyfast*"]), "psyfast.kernels.triton"],
    package_dir={"psyfast.kernels.triton": "kernels/triton"},
)
