"""Every barrier and every wait of the CUDA kernels is needed: without it, numbers are wrong or ThreadSanitizer sees it.

The kernels are compiled once, so that each such place is passed over where LEFT_OUT is its number.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from emulated_programs import FOUND_RACE, KERNELS, ROOT, compile_object, link_program, run_program

WRONG_NUMBERS = 1
ORDERS_MEMORY = re.compile(r"__syncthreads\(\);|__syncwarp\(\);|cp_async_wait<[^>]*>\(\);")
PARTS = ("rows", "linear_nll", "attention", "delta_rule")
FILES = (("operand.h", "rows"), *((f"{part}.cu", part) for part in PARTS))
"""Files that are mutated, and the kernels that are run for it."""
NONE = -1
READING = """#include <cstdlib>
int left_out = std::atoi(std::getenv("LEFT_OUT"));
"""


@dataclass(frozen=True)
class Mutant:
    """A place in a file that is left out; `part` names the kernels that are run for it."""

    number: int
    file: str
    part: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def all_mutants() -> list[Mutant]:
    mutants: list[Mutant] = []
    for file, part in FILES:
        text = (KERNELS / file).read_text(encoding="utf-8")
        for found in ORDERS_MEMORY.finditer(text):
            mutants.append(Mutant(len(mutants), file, part, text.count("\n", 0, found.start()) + 1))
    return mutants


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    kernels = shutil.copytree(KERNELS, folder / "cuda")
    numbers = (mutant.number for mutant in all_mutants())
    for file, _ in FILES:
        text = (kernels / file).read_text(encoding="utf-8")
        asking = ORDERS_MEMORY.sub(lambda found: f"{{ if (left_out != {next(numbers)}) {found[0]} }}", text)
        (kernels / file).write_text(f"extern int left_out;\n{asking}", encoding="utf-8")
    (folder / "left_out.cc").write_text(READING, encoding="utf-8")
    sources = [*kernels.glob("*.cu"), ROOT / "tests" / "native" / "cuda_test.cc", folder / "left_out.cc"]
    objects = [compile_object("thread", source, folder / f"{source.stem}.o", kernels) for source in sources]
    return link_program("thread", objects, folder / "mutants")


@pytest.mark.parametrize("part", PARTS)
def test_the_kernels_as_they_are_pass(program: Path, part: str) -> None:
    done = run_program(program, part, LEFT_OUT=str(NONE))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mutant", all_mutants(), ids=str)
def test_what_orders_memory_is_missed(program: Path, mutant: Mutant) -> None:
    done = run_program(program, mutant.part, LEFT_OUT=str(mutant.number))
    assert done.returncode in (WRONG_NUMBERS, FOUND_RACE), f"nobody misses it: {mutant}"


def test_nothing_that_orders_memory_is_overlooked() -> None:
    """Every file that could hold such a place is among those that are mutated."""
    files = {path.name for path in [*KERNELS.glob("*.cu"), *KERNELS.glob("*.h")]} - {"device.h"}
    ordering = {name for name in files if ORDERS_MEMORY.search((KERNELS / name).read_text(encoding="utf-8"))}
    assert ordering == {mutant.file for mutant in all_mutants()}
    assert len(all_mutants()) >= 15
