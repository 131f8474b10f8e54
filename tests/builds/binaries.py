"""What a kernel's binary tells without a GPU: registers, stack, spills, shared memory, and which units it uses.

Read with cuobjdump and nvdisasm, which come with Triton's wheel; nvcc's binaries name the same things.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Instructions counted in the machine code, by the start of their names. They are counted as written, not as run.
COUNTED = {
    "HMMA": r"HMMA",  # tensor cores fed from registers, a warp at a time
    "HGMMA": r"HGMMA",  # Hopper's: four warps, operands from shared memory
    "UTCHMMA": r"UTCHMMA",  # Blackwell's: one thread starts it, sums in tensor memory
    "LDGSTS": r"LDGSTS",  # copies to shared memory that a thread need not wait for (cp.async)
    "UTMALDG": r"UTMALDG",  # tiles that the copy engine fetches by a descriptor (TMA)
    "UBLKCP": r"UBLKCP",  # runs of bytes that it fetches
    "MUFU": r"MUFU",  # special functions: exp2, log2, reciprocal
}
TENSOR_CORE = ("HMMA", "HGMMA", "UTCHMMA")
ASYNC_COPY = ("LDGSTS", "UTMALDG", "UBLKCP")

# What one block may have. Shared memory in bytes, as a launch may ask for on that generation.
SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448, 120: 101_376}
THREAD_LIMIT = 1_024
REGISTER_FILE = 65_536
REGISTER_UNIT = 8  # a thread's registers are given out in eights


@dataclass(frozen=True)
class Binary:
    """One kernel for one generation.

    backend: `triton` or `cuda`. capability: 80, 90, 100 or 120. kernel: its label. toolchain: the compiler and its
    assembler. registers: a thread's. stack: bytes a thread. spill: bytes that its loads and stores of local memory move,
    each instruction once. shared: bytes a block; for CUDA without what a launch adds. threads: of the largest block.
    counts: of the instructions of COUNTED.
    """

    backend: str
    capability: int
    kernel: str
    toolchain: str
    registers: int
    stack: int
    spill: int
    shared: int
    threads: int
    counts: Mapping[str, int]

    @property
    def key(self) -> tuple[str, int, str]:
        """Which build it is."""
        return self.backend, self.capability, self.kernel

    def __str__(self) -> str:
        return f"{self.backend} sm_{self.capability} {self.kernel}"


def read(cubin: Path, backend: str, capability: int, toolchain: str) -> list[Binary]:
    """Every kernel in a binary, under the name that it has there."""
    code = _parts(_run("nvdisasm", "-c", cubin), r"^\.text\.(\S+):\s*$")
    notes = _parts(_run("cuobjdump", "-elf", cubin), r"^\s*\.nv\.info\.(\S+)\s*$")
    usage = re.findall(r"Function (\S+):\s*\n\s*(REG:.*)", _run("cuobjdump", "--dump-resource-usage", cubin))
    return [
        Binary(
            backend=backend,
            capability=capability,
            kernel=name,
            toolchain=toolchain,
            registers=_number(r"REG:(\d+)", resources),
            stack=_number(r"STACK:(\d+)", resources),
            spill=spilled_bytes(code[name]),
            shared=_number(r"SHARED:(\d+)", resources),
            threads=_threads(notes[name]),
            counts={kind: len(re.findall(rf"\b{pattern}\b", code[name])) for kind, pattern in COUNTED.items()},
        )
        for name, resources in usage
    ]


def spilled_bytes(code: str) -> int:
    """Bytes a thread that machine code moves between registers and local memory, each instruction once."""
    widths = re.findall(r"\b(?:LDL|STL)(?:\.\w+)*?(?:\.(U8|S8|U16|S16|64|128))?\s", code)
    return sum({"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}.get(width, 4) for width in widths)


def _threads(notes: str) -> int:
    """Threads of the largest block that a kernel says it is launched with."""
    found = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s+\S+\s+Value:((?:\s+0x[0-9a-f]+)+)", notes)
    assert found, "a kernel says nowhere how many threads it has: __launch_bounds__"
    threads = 1
    for extent in found[1].split():
        threads *= int(extent, 16)
    return threads


def _parts(text: str, heading: str) -> dict[str, str]:
    """A tool's output by kernel."""
    parts = re.split(heading, text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {text}"
    return int(found[1])


def _run(tool: str, *arguments: str | Path) -> str:
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout
