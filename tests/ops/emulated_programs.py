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


def compile_program(build: str, sources: list[Path], program: Path, include: tuple[Path, ...] = (KERNELS,)) -> Path:
    """Compiles; skips where the compiler is absent, fails where it complains."""
    compiler, *flags = BUILDS[build]
    if shutil.which(compiler) is None:
        pytest.skip(f"the CUDA kernels are not checked with {build}: {compiler} is absent")
    includes = [f"-I{folder}" for folder in include]
    named = [word for source in sources for word in ("-x", "c++", str(source))]
    command = [compiler, "-std=c++17", *flags, "-Wall", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
    done = subprocess.run(
        [*command, *includes, *named, "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return program


def run_program(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs; what a sanitizer finds has an exit code of its own."""
    command = [str(program), *arguments]
    environment = os.environ | ENVIRONMENT
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
