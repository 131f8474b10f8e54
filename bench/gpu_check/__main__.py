"""`python3 -m bench.gpu_check`: every part in turn, a line as each ends, the tables last. Exit code 3 without a GPU."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu_check import building, machine, report, sanitizer
from bench.gpu_check.tasks import Outcome, Runner, Task
from bench.measuring import commit

Row = dict[str, Any]
NO_GPU, FAILED, UNUSABLE = 3, 1, 2
OPERATORS = (("linear_nll",), ("attention",), ("norm_rows", "add_rows", "gated"), ("heads", "copy_slots"))
MODELS = ("Llama-3.2-1B", "Qwen3-8B")
LARGE_GPU_BYTES = 30 * 10**9
BUDGETS_S = {
    "ceilings": 30,
    "build": 150,
    "numerics": 90,
    "determinism": 60,
    "sanitizer": 75,
    "throughput": 45,
    "engine": 50,
}
"""Of a task; numerics and determinism run several at a time, a sanitizer's tools all at once, what is timed alone."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu_check", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("build/gpu-check"), help="folder of the report and the build"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the random inputs; by default a new one each time")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no task goes on")
    parser.add_argument("--parts", nargs="+", choices=report.PARTS[2:], default=report.PARTS[2:], help="default: all")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The exit code: 0 all passed, 1 something failed, 2 torch is missing, 3 no GPU."""
    options, started = parse(arguments), time.monotonic()
    if find_spec("torch") is None:
        print(f"torch is not installed for {sys.executable}: gpu-check needs torch, numpy, and Triton or nvcc")
        return UNUSABLE
    why = machine.why_no_gpu()
    if why is not None:
        print(why)
        return NO_GPU
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    check = Check(Runner(options.output.resolve(), started + 60 * options.minutes), machine.facts(), seed)
    check.run(set(options.parts))
    document = {
        "command": " ".join(["python3 -m bench.gpu_check", *arguments]),
        "commit": commit(building.ROOT) if shutil.which("git") else "none",
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": time.monotonic() - started,
        "seed": seed,
        "machine": check.machine,
        "ceilings": check.ceilings,
        "notes": check.notes,
        "outcomes": [outcome.to_dict() for outcome in check.runner.outcomes],
    }
    written = report.write(document, check.runner.folder)
    print(f"\n{report.last_tables(document)}\n\nreport: {', '.join(map(str, written))}")
    return FAILED if any(outcome.failed for outcome in check.runner.outcomes) else 0


class Check:
    """All parts on one machine. torch_device: of the workers."""

    def __init__(self, runner: Runner, found: Row, seed: int, torch_device: str = "cuda") -> None:
        self.runner, self.machine, self.seed = runner, found, seed
        self.notes = machine.notes(found)
        self.ceilings: Row | None = None
        self.backends: list[str] = []
        self.num_tokens = 16_384
        if found["free_memory_bytes"] < LARGE_GPU_BYTES:
            self.num_tokens = max(1024, int(found["free_memory_bytes"] / LARGE_GPU_BYTES * 16) * 1024)
            free = found["free_memory_bytes"] / 1e9
            self.notes.append(f"{free:.0f} GB are free: sizes were shrunk, to {self.num_tokens:,} tokens")
        self._base: Row = {
            "torch_device": torch_device,
            "native": str(runner.folder / "native"),
            "seed": seed,
            "device": found["device"],
            "l2_bytes": found["l2_bytes"],
            "free_memory_bytes": found["free_memory_bytes"],
            "num_tokens": self.num_tokens,
        }

    def run(self, parts: set[str]) -> None:
        """Ceilings first; then what is not timed, beside the build; then what is timed, alone."""
        measured = self.runner.run(Task("ceilings", "copy, matrix product", BUDGETS_S["ceilings"], self._base))
        rows = measured.checked
        self.ceilings = rows[0] if rows and not measured.failed else None
        width = max(2, min(8, (os.cpu_count() or 2) // 2))
        why_not = machine.why_no_triton()
        if why_not is None:
            self.backends.append("triton")
        else:
            self.runner.add(Outcome("build", "triton", 0.0, note=why_not, skipped=True))
        with ThreadPoolExecutor(1) as builder:
            building_cuda = builder.submit(self._build_cuda)
            if "triton" in self.backends:
                self.runner.run_together(self._checks("triton", parts), max(2, width // 2))
            if building_cuda.result():
                self.backends.append("cuda")
                self.runner.run_together(self._checks("cuda", parts), width)
        if not self.backends:
            self.runner.add(
                Outcome("build", "all", 0.0, error="neither Triton nor psyfast._cuda is there: nothing to check")
            )
            return
        if "sanitizer" in parts:
            self._sanitize(width)
        if self.ceilings is None:
            self.runner.add(
                Outcome("throughput", "all", 0.0, note="left out: no ceilings to compare with", skipped=True)
            )
            return
        self._time(parts)

    def _build_cuda(self) -> bool:
        """Whether psyfast._cuda is there."""
        why_not = machine.why_no_cuda_build()
        if why_not is not None:
            self.runner.add(Outcome("build", "cuda", 0.0, note=f"only Triton is checked: {why_not}", skipped=True))
            return False
        started = time.monotonic()
        major, minor = self.machine["capability"]
        error = building.build((major, minor), self.runner.folder, BUDGETS_S["build"])
        self.runner.add(
            Outcome("build", "cuda", time.monotonic() - started, [{"case": "build", "passed": not error}], error)
        )
        return error is None

    def _checks(self, backend: str, parts: set[str]) -> list[Task]:
        """Numerics and determinism of a backend, a task a group of operators."""
        return [
            Task(
                part,
                f"{backend} {', '.join(group)}",
                BUDGETS_S[part],
                {**self._base, "backend": backend, "operators": group},
            )
            for part in ("numerics", "determinism")
            if part in parts
            for group in OPERATORS
        ]

    def _sanitize(self, width: int) -> None:
        program = machine.tool("compute-sanitizer")
        if program is None:
            self.runner.add(
                Outcome("sanitizer", "all", 0.0, note="no compute-sanitizer in the CUDA toolkit here", skipped=True)
            )
            return
        tasks = [
            sanitizer.task(program, tool, backend, self._base, BUDGETS_S["sanitizer"])
            for tool in sanitizer.TOOLS
            for backend in self.backends
        ]
        self.runner.run_together(tasks, width)

    def _time(self, parts: set[str]) -> None:
        job = {**self._base, "ceilings": self.ceilings, "backends": self.backends}
        if "throughput" in parts:
            for group in (OPERATORS[0], OPERATORS[1], OPERATORS[2] + OPERATORS[3]):
                self.runner.run(
                    Task("throughput", ", ".join(group), BUDGETS_S["throughput"], {**job, "operators": group})
                )
        if "engine" in parts:
            for model in MODELS:
                self.runner.run(Task("engine", model, BUDGETS_S["engine"], {**job, "model": model}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
