"""Every barrier and every wait of the CUDA kernels is needed: without it, numbers are wrong or ThreadSanitizer sees it."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from emulated_programs import FOUND_RACE, KERNELS, ROOT, compile_object, link_program, run_program

WRONG_NUMBERS = 1
ORDERS_MEMORY = re.compile(r"__syncthreads\(\);|__syncwarp\(\);|cp_async_wait<[^>]*>\(\);")
PARTS = ("rows", "linear_nll", "attention", "delta_rule")


@dataclass(frozen=True)
class Mutant:
    """A place in a file that is left out; `part` names the kernels that are compiled with it."""

    file: str
    part: str
    start: int
    stop: int
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def source(self) -> str:
        text = (KERNELS / self.file).read_text(encoding="utf-8")
        return text[: self.start] + ";" + text[self.stop :]


def all_mutants() -> list[Mutant]:
    mutants = []
    for file, part in (("operand.h", "rows"), *((f"{part}.cu", part) for part in PARTS)):
        text = (KERNELS / file).read_text(encoding="utf-8")
        for found in ORDERS_MEMORY.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            mutants.append(Mutant(file, part, found.start(), found.end(), line))
    return mutants


@cache
def sound_objects(folder: Path) -> dict[str, Path]:
    sources = {path.stem: path for path in KERNELS.glob("*.cu")} | {"test": ROOT / "tests" / "native" / "cuda_test.cc"}
    return {name: compile_object("thread", source, folder / f"{name}.o") for name, source in sources.items()}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return sound_objects(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("part", PARTS)
def test_the_kernels_as_they_are_pass(objects: dict[str, Path], tmp_path: Path, part: str) -> None:
    done = run_program(link_program("thread", list(objects.values()), tmp_path / "sound"), part)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mutant", all_mutants(), ids=str)
def test_what_orders_memory_is_missed(objects: dict[str, Path], tmp_path: Path, mutant: Mutant) -> None:
    kernels = tmp_path / "cuda"
    shutil.copytree(KERNELS, kernels)
    (kernels / mutant.file).write_text(mutant.source(), encoding="utf-8")
    mutated = compile_object("thread", kernels / f"{mutant.part}.cu", tmp_path / "mutant.o", kernels)
    others = [path for name, path in objects.items() if name != mutant.part]
    done = run_program(link_program("thread", [mutated, *others], tmp_path / "mutant"), mutant.part)
    assert done.returncode in (WRONG_NUMBERS, FOUND_RACE), f"nobody misses it: {mutant}"


def test_nothing_that_orders_memory_is_overlooked() -> None:
    """Every file that could hold such a place is among those that are mutated."""
    files = {path.name for path in [*KERNELS.glob("*.cu"), *KERNELS.glob("*.h")]} - {"device.h"}
    ordering = {name for name in files if ORDERS_MEMORY.search((KERNELS / name).read_text(encoding="utf-8"))}
    assert ordering == {mutant.file for mutant in all_mutants()}
    assert len(all_mutants()) >= 15
