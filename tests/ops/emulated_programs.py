"""Stand-alone programs of CUDA sources, compiled for the CPU: plainly, or with a sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "cuda"

# GCC's ThreadSanitizer does not see every access that we count on; clang's does.
BUILDS = {
    "plain": ["g++", "-O1"],
    "address": ["g++", "-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["clang++", "-O1", "-g1", "-fsanitize=thread"],
}
FOUND_RACE, FOUND_ADDRESS = 66, 77
ENVIRONMENT = {
    "TSAN_OPTIONS": f"halt_on_error=1 exitcode={FOUND_RACE}",
    "ASAN_OPTIONS": f"exitcode={FOUND_ADDRESS}",
}


def compiler_of(build: str) -> list[str]:
    """The compiler and its options; skips where it is absent."""
    compiler, *flags = BUILDS[build]
    if shutil.which(compiler) is None:
        pytest.skip(f"the CUDA kernels are not checked with {build}: {compiler} is absent")
    return [compiler, *flags, "-std=c++17", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]


def run_compiler(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def compile_program(build: str, source: Path, program: Path) -> Path:
    run_compiler([*compiler_of(build), f"-I{KERNELS}", str(source), "-o", str(program)])
    return program


def compile_object(build: str, source: Path, target: Path, headers: Path = KERNELS) -> Path:
    """A source of any suffix, with the headers of a folder."""
    run_compiler([*compiler_of(build), f"-I{headers}", "-c", "-x", "c++", str(source), "-o", str(target)])
    return target


def compile_library(build: str, source: Path, library: Path) -> Path:
    run_compiler([*compiler_of(build), f"-I{KERNELS}", "-shared", "-fPIC", str(source), "-o", str(library)])
    return library


def link_program(build: str, objects: list[Path], program: Path) -> Path:
    run_compiler([*compiler_of(build), *map(str, objects), "-o", str(program)])
    return program


def run_program(program: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs, with variables of its environment; what a sanitizer finds has an exit code of its own."""
    command = [str(program), *arguments]
    environment = os.environ | ENVIRONMENT | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
