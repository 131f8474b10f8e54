"""The builds of psyfast._native that the tests run: the installed one, and one whose AVX-512 levels are emulated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from built_modules import built_module

from psyfast.ops import cpu, native

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


def emulated_module() -> ModuleType:
    """The module whose AVX-512 levels run anywhere."""
    return built_module("_native", "emulated", "-DPSY_EMULATE_AVX512=ON")
