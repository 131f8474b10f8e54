"""The committed table of builds: how it is written, read, compared and shown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from tests.builds.binaries import (
    ASYNC_COPY,
    COUNTED,
    REGISTER_FILE,
    REGISTER_UNIT,
    SHARED_LIMIT,
    TENSOR_CORE,
    THREAD_LIMIT,
    Binary,
)

TABLE = Path(__file__).resolve().parents[2] / "kernels" / "builds.csv"
NUMBERS = ("registers", "stack", "spill", "shared", "threads")
COLUMNS = ("backend", "capability", "kernel", "toolchain", *NUMBERS, *COUNTED)

# A small change of a kernel moves these a little, and is no loss; more has to be written into the table.
REGISTER_SLACK = 8
SHARED_SLACK = 1_024


def to_csv(binaries: Iterable[Binary]) -> str:
    """One line a build."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for binary in sorted(binaries, key=lambda b: b.key):
        numbers = [getattr(binary, name) for name in NUMBERS]
        counts = [binary.counts[name] for name in COUNTED]
        writer.writerow([binary.backend, binary.capability, binary.kernel, binary.toolchain, *numbers, *counts])
    return out.getvalue()


def from_csv(text: str) -> list[Binary]:
    """What to_csv wrote."""
    return [
        Binary(
            backend=row["backend"],
            capability=int(row["capability"]),
            kernel=row["kernel"],
            toolchain=row["toolchain"],
            counts={name: int(row[name]) for name in COUNTED},
            **{name: int(row[name]) for name in NUMBERS},
        )
        for row in csv.DictReader(io.StringIO(text))
    ]


def faults(binary: Binary, tolerated_stack: int = 0) -> list[str]:
    """Why a kernel may not be shipped, whatever the table says: memory in place of registers, or no launch.

    tolerated_stack: bytes a thread, of which each may be spilled and loaded a few times.
    """
    registers = -(-binary.registers // REGISTER_UNIT) * REGISTER_UNIT * binary.threads
    found = {
        f"{binary.stack} bytes of stack": binary.stack > tolerated_stack,
        f"{binary.spill} bytes spilled": binary.spill > 8 * tolerated_stack,
        f"{binary.threads} threads a block": binary.threads > THREAD_LIMIT,
        f"{registers} registers a block, of {REGISTER_FILE}": registers > REGISTER_FILE,
        f"{binary.shared} bytes of shared memory": binary.shared > SHARED_LIMIT[binary.capability],
    }
    return [f"{binary}: {fault}" for fault, there in found.items() if there]


def losses(binary: Binary, before: Binary) -> list[str]:
    """What a kernel has lost since the table was written."""
    assert binary.key == before.key
    more = {"registers": REGISTER_SLACK, "shared": SHARED_SLACK}
    found = [
        f"{binary}: {name} {getattr(binary, name)}, was {getattr(before, name)}"
        for name, slack in more.items()
        if getattr(binary, name) > getattr(before, name) + slack
    ]
    return found + [
        f"{binary}: {name} {binary.counts[name]}, was {before.counts[name]}"
        for name in (*TENSOR_CORE, *ASYNC_COPY)
        if binary.counts[name] < before.counts[name]
    ]


def is_product(binary: Binary) -> bool:
    """Whether a kernel multiplies matrices of a half-width type, and so belongs on tensor cores."""
    return PRODUCTS[binary.backend].match(binary.kernel) is not None


PRODUCTS = {
    "triton": re.compile(r"(attention|linear_nll/partials)/(bf16|fp16)\b"),
    # Gathered logits are dot products of single rows, and merging has sums alone. `false`: rows that do not begin at
    # multiples of 16 bytes, which cp.async cannot copy.
    "cuda": re.compile(r"(attention|linear_nll)/(?!.*(gather|merge)).*<(.*,)?(__nv_bfloat16|__half)\b(?!,false)"),
}
TRITON_TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


def missing_units(binary: Binary) -> list[str]:
    """Which units of its generation a matrix product does not use: tensor cores, and copies that nobody waits for."""
    tensor_core = TRITON_TENSOR_CORE[binary.capability] if binary.backend == "triton" else "HMMA"
    found = []
    if not binary.counts[tensor_core]:
        found.append(f"{binary}: no {tensor_core}")
    if not any(binary.counts[name] for name in ASYNC_COPY):
        found.append(f"{binary}: no asynchronous copies")
    return found
