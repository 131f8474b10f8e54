"""ISA levels: which one is chosen, what forcing one does, and what the built objects contain and keep to themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from built_modules import ROOT

from psyfast import _native
from psyfast.errors import BackendError
from psyfast.ops import cpu, native

ALL_LEVELS = ["portable", "avx2", "avx512", "avx512_bf16"]
PROGRAM = """
import torch
from psyfast.errors import BackendError
from psyfast.ops import cpu
try:
    print(cpu.isa_name())
except BackendError as error:
    print("BackendError:", error)
"""


def isa_under(forced: str | None) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PSYFAST_FORCE_ISA"}
    if forced is not None:
        env["PSYFAST_FORCE_ISA"] = forced
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=env, cwd=ROOT
    )
    return done.stdout.strip()


def test_levels_rise_from_portable() -> None:
    compiled, available = _native.compiled_isas(), cpu.available_isas()
    assert compiled == [isa for isa in ALL_LEVELS if isa in compiled]
    assert available == [isa for isa in compiled if isa in available]
    assert available[0] == "portable"


def test_the_highest_level_is_chosen() -> None:
    assert isa_under(None) == cpu.available_isas()[-1]
    assert isa_under("") == cpu.available_isas()[-1]


@pytest.mark.parametrize("isa", ALL_LEVELS)
def test_forcing_a_level_gives_it_or_raises(isa: str) -> None:
    said = isa_under(isa)
    if isa in cpu.available_isas():
        assert said == isa
    else:
        assert said.startswith(f"BackendError: PSYFAST_FORCE_ISA: ISA level '{isa}' cannot run")
        assert ", ".join(cpu.available_isas()) in said


def test_forcing_an_unknown_level_raises() -> None:
    said = isa_under("sse9")
    assert said.startswith("BackendError: PSYFAST_FORCE_ISA: unknown ISA level 'sse9', expected portable, avx2")
    assert ", ".join(cpu.available_isas()) in said


def test_a_level_that_is_absent_raises_when_asked_for() -> None:
    absent = [isa for isa in ALL_LEVELS if isa not in cpu.available_isas()]
    if not absent:  # then there is nothing to refuse
        pytest.skip("this machine has every level")
    with pytest.raises(ValueError, match="cannot run"):
        _native.exp_nonpositive(absent[0], 0, 0, 0)


def isa_object(isa: str, source: str = "linear_nll") -> Path:
    """An object file of a level in the newest CMake build folder; rebuilt by `pip install -e .`."""
    pattern = f"build/cmake-*/CMakeFiles/psyfast_core.dir/csrc/{isa}/{source}.cc.o"
    found = sorted(ROOT.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:  # psyfast was installed from a wheel: its objects were never here
        pytest.skip(f"no object of {isa} under build/: run `pip install -e . --no-build-isolation`")
    return found[-1]


def read_binary(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:  # nothing else reads objects; continuous integration installs it
        pytest.skip(f"{tool} is absent (Debian: binutils)")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def functions_of(isa: str, source: str = "linear_nll") -> dict[str, str]:
    """Disassembly by demangled name."""
    text = read_binary("objdump", "-dC", "--no-show-raw-insn", str(isa_object(isa, source)))
    return dict(re.findall(r"^[0-9a-f]+ <(.+)>:\n((?:.+\n)+)", text, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("isa", "lane", "instruction", "count"),
    [
        ("avx2", "Fp32Lane, 6", r"vfmadd\w+ps .*%ymm", 12),
        ("avx2", "Bf16Lane, 6", r"vfmadd\w+ps .*%ymm", 24),
        ("avx512", "Fp32Lane, 6", r"vfmadd\w+ps .*%zmm", 24),
        ("avx512", "Bf16Lane, 6", r"vfmadd\w+ps .*%zmm", 48),
        ("avx512_bf16", "Fp32Lane, 6", r"vfmadd\w+ps .*%zmm", 24),
        ("avx512_bf16", "Bf16Lane, 6", r"vdpbf16ps .*%zmm", 24),
    ],
)
def test_tiles_hold_their_accumulators_in_registers(isa: str, lane: str, instruction: str, count: int) -> None:
    if isa not in _native.compiled_isas():  # not an x86-64 build, or a compiler without the level
        pytest.skip(f"{isa} is not compiled on this platform")
    wanted = f"psyfast::{isa}::strip<psyfast::{isa}::{lane}, psyfast::{isa}::Prefetch>"  # its tiles are inlined
    (body,) = [code for function, code in functions_of(isa).items() if wanted in function]
    assert len(re.findall(instruction, body)) >= count
    # A few registers may be spilled where the compiler prefers it; accumulators as a whole may not live in memory.
    assert len(re.findall(r"vmovaps %[yz]mm\d+,-?0x[0-9a-f]+\(%r[sb]p\)", body)) <= count // 8


@pytest.mark.parametrize(
    ("isa", "lane", "instruction", "count"),
    [
        ("avx2", "Fp32Lane", r"vfmadd\w+ps .*%ymm", 12),
        ("avx512", "Fp32Lane", r"vfmadd\w+ps .*%zmm", 24),
        ("avx512_bf16", "Fp32Lane", r"vfmadd\w+ps .*%zmm", 24),
        ("avx512_bf16", "Bf16Lane", r"vdpbf16ps .*%zmm", 24),
    ],
)
def test_the_peak_s_tile_keeps_everything_in_registers(isa: str, lane: str, instruction: str, count: int) -> None:
    """A spill would lower the peak, and with it raise every share of it."""
    if isa not in _native.compiled_isas():  # not an x86-64 build, or a compiler without the level
        pytest.skip(f"{isa} is not compiled on this platform")
    wanted = f"psyfast::{isa}::tile_laps_lane<psyfast::{isa}::{lane}>"
    (body,) = [code for function, code in functions_of(isa, "peak").items() if wanted in function]
    assert len(re.findall(instruction, body)) == count
    assert not re.search(r"%[yz]mm\d+,-?0x[0-9a-f]+\(%r[sb]p\)", body)


@pytest.mark.parametrize("source", ["attention", "linear", "linear_nll", "peak"])
@pytest.mark.parametrize("isa", ALL_LEVELS)
def test_isa_objects_export_nothing_but_their_table(isa: str, source: str) -> None:
    """A weak inline function built with -mavx512 might be kept by the linker for every level."""
    if isa not in _native.compiled_isas():  # not an x86-64 build, or a compiler without the level
        pytest.skip(f"{isa} is not compiled on this platform")
    lines = read_binary("nm", "-C", "--defined-only", "--extern-only", str(isa_object(isa, source))).splitlines()
    table = "k" + "".join(word.capitalize() for word in source.split("_"))
    assert [line.split(maxsplit=2)[2] for line in lines] == [f"psyfast::{isa}::{table}"]


def test_portable_objects_hold_no_vector_extension() -> None:
    if "avx2" not in _native.compiled_isas():
        pytest.skip("not an x86-64 build")
    assert not any(re.search(r"%[yz]mm", code) for code in functions_of("portable").values())


def test_bad_level_is_a_backend_error() -> None:
    with pytest.raises(BackendError, match="unknown ISA level"):
        native.guarded(lambda: _native.exp_nonpositive("neon", 0, 0, 0))
