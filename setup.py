"""Builds psyfast._native with CMake, and says where the Triton kernels' package lies; the rest is in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures once into build/cmake-<platform>-<python> and lets ninja decide what is to be rebuilt."""

    def build_extension(self, ext: Extension) -> None:
        """Builds the one extension of this package."""
        import pybind11

        out_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out_dir}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        # The build's isolated environment, if there is one, may have brought its own ninja along.
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir), "--target", "_native"], check=True)


setup(
    ext_modules=[Extension("psyfast._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    packages=[*find_packages(include=["psyfast*"]), "psyfast.kernels.triton"],
    package_dir={"psyfast.kernels.triton": "kernels/triton"},
)
