"""The builds of psyfast._native that the tests run: the installed one, and one whose AVX-512 levels are emulated."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

from psyfast.ops import cpu, native

ROOT = Path(__file__).resolve().parents[2]
SIMDE_HEADER = Path("/usr/include/simde/x86/avx512.h")
EMULATED = ("avx512", "avx512_bf16")


@dataclass(frozen=True)
class Level:
    """An ISA level of one build; `emulated` ones compute AVX-512 intrinsics in plain C."""

    isa: str
    emulated: bool = False

    def __str__(self) -> str:
        return f"{self.isa}-emulated" if self.emulated else self.isa

    def activate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lets psyfast.ops.cpu use this level's build for the length of a test."""
        if self.emulated:
            module = emulated_module()
            monkeypatch.setattr(native, "load", lambda: module)


def _why_not_emulated(isa: str) -> str | None:
    if isa in cpu.available_isas():
        return f"{isa} is not emulated: it runs here"
    return None if SIMDE_HEADER.exists() else f"{isa} is not emulated: SIMDe is absent (Debian: libsimde-dev)"


LEVELS = [
    *(Level(isa) for isa in cpu.available_isas()),
    *(
        pytest.param(
            Level(isa, emulated=True),
            marks=pytest.mark.skipif(_why_not_emulated(isa) is not None, reason=str(_why_not_emulated(isa))),
        )
        for isa in EMULATED
    ),
]


@cache
def _build_emulated(build_dir: Path) -> str:
    """Builds, once and then incrementally, the AVX-512 sources against SIMDe; returns what went wrong, or nothing."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja", "-DPSY_EMULATE_AVX512=ON"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in (configure, ["cmake", "--build", str(build_dir), "--target", "_native"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return done.stdout[-4000:] + done.stderr[-4000:]
    return ""


@cache
def emulated_module() -> ModuleType:
    """The module whose AVX-512 levels run anywhere."""
    build_dir = ROOT / "build" / f"emulated-{sys.implementation.cache_tag}"
    failure = _build_emulated(build_dir)
    assert not failure, failure
    (path,) = build_dir.glob("_native*.so")
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
