"""Which native modules an installation builds, and what CMake is told: with a program that only writes down how it was called."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("setuptools")
pytest.importorskip("pybind11")


def calls_of_cmake(cmake_args, folder):
    """The lines of arguments that cmake got, in order."""
    written = folder / "calls"
    program = folder / "bin" / "cmake"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {written}\n', encoding="utf-8")
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}", "CMAKE_ARGS": cmake_args}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib")]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return written.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("cmake_args", "targets"),
    [
        ("", ["_native"]),
        ("-DPSY_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a", ["_native", "_cuda"]),
        ("-DPSY_WERROR=ON -D PSY_CUDA:BOOL=1", ["_native", "_cuda"]),
        ("-DPSY_CUDA=ON -DPSY_CUDA=OFF -DPSY_CUDA_EMULATED=ON", ["_native"]),
    ],
)
def test_the_cuda_kernels_are_built_where_they_are_asked_for(cmake_args, targets, tmp_path):
    configure, *builds = calls_of_cmake(cmake_args, tmp_path)
    assert configure.endswith(f" -DPSY_CUDA=OFF {cmake_args}".rstrip())  # the user's come last, so that they count
    assert f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tmp_path}/lib/psyfast " in configure
    assert [build.split(" --target ")[1] for build in builds] == targets
