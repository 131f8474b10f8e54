"""docs/gpu-builds.md: the table of builds as a page."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from tests.builds.binaries import ASYNC_COPY, TENSOR_CORE, Binary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu-builds.md"
START, END = "<!-- written by make gpu-table -->\n", "<!-- end -->\n"
HEAD = (
    "| kernel | sm | threads | registers | stack, spill | shared memory | tensor cores | asynchronous copies | MUFU |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
)


def rewritten(page: str, binaries: Iterable[Binary]) -> str:
    """The page with its tables replaced."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{tables(binaries)}{END}{after}"


def tables(binaries: Iterable[Binary]) -> str:
    """A table a kernel file."""
    ordered = sorted(binaries, key=lambda b: (b.backend, b.kernel, b.capability))
    parts = []
    for (backend, operator), group in groupby(ordered, key=lambda b: (b.backend, b.kernel.split("/")[0])):
        rows = list(group)
        made = ", ".join(sorted({binary.toolchain for binary in rows}))
        lines = "".join(_line(binary) for binary in rows)
        parts.append(f"\n### {backend}: {operator}\n\nBuilt by {made}.\n\n{HEAD}{lines}\n")
    return "".join(parts)


def _line(binary: Binary) -> str:
    cells = (
        f"`{binary.kernel}`",
        binary.capability,
        binary.threads,
        binary.registers,
        f"{binary.stack}, {binary.spill}",
        f"{binary.shared:,}",
        _units(binary, TENSOR_CORE),
        _units(binary, ASYNC_COPY),
        binary.counts["MUFU"],
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |\n"


def _units(binary: Binary, names: tuple[str, ...]) -> str:
    return ", ".join(f"{binary.counts[name]} {name}" for name in names if binary.counts[name])
