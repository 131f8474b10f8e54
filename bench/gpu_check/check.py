"""The parts in their order: ceilings; what is not timed, several at a time, beside the build; what is timed, alone."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.gpu_check import building, machine, sanitizer
from bench.gpu_check.cases import GROUPS
from bench.gpu_check.shapes import MODELS
from bench.gpu_check.tasks import Outcome, Runner, Task

Row = dict[str, Any]
TOGETHER = (
    ("linear_nll",),
    ("attention",),
    ("short_convolution", "delta_rule"),
    ("norm_rows", "add_rows", "gated", "heads", "copy_slots"),
)
LARGE_GPU_BYTES = 30 * 10**9
BUDGETS_S = {
    "ceilings": 30,
    "build": 150,
    "others": 90,
    "numerics": 90,
    "determinism": 60,
    "sanitizer": 75,
    "throughput": 45,
    "engine": 50,
}
"""Of a task; numerics and determinism run several at a time, a sanitizer's tools all at once, what is timed alone."""


class Check:
    """All parts on one machine. torch_device: of the workers."""

    def __init__(self, runner: Runner, found: Row, seed: int, torch_device: str = "cuda") -> None:
        self.runner, self.machine, self.seed = runner, found, seed
        self.notes = machine.notes(found)
        self.ceilings: Row | None = None
        self.backends: list[str] = []
        self.others: list[str] = []
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
        with ThreadPoolExecutor(1) as builder, ThreadPoolExecutor(1) as warmer:
            building_cuda = builder.submit(self._build_cuda)
            if "throughput" in parts:
                warming = warmer.submit(self._usable_others)
            if "triton" in self.backends:
                self.runner.run_together(self._checks("triton", parts), width)
            if building_cuda.result():
                self.backends.append("cuda")
                self.runner.run_together(self._checks("cuda", parts), width)
            if "throughput" in parts:
                self.others = warming.result()
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
        """Numerics and determinism of a backend, a task a group of cases or operators, the longest first."""
        job = {**self._base, "backend": backend}
        found = [
            Task("numerics", f"{backend} {group}", BUDGETS_S["numerics"], {**job, "group": group}) for group in GROUPS
        ]
        found += [
            Task("determinism", f"{backend} {', '.join(names)}", BUDGETS_S["determinism"], {**job, "operators": names})
            for names in TOGETHER
        ]
        return [task for task in found if task.part in parts]

    def _usable_others(self) -> list[str]:
        """Whoever else is installed and runs; what they compile is compiled now and not while they are timed."""
        task = Task("others", "FlashInfer, Liger", BUDGETS_S["others"], self._base, ours=False)
        return sorted({row["case"] for row in self.runner.run(task).rows})

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
        job = {**self._base, "ceilings": self.ceilings, "backends": self.backends, "others": self.others}
        if "throughput" in parts:
            for names in TOGETHER:
                self.runner.run(
                    Task("throughput", ", ".join(names), BUDGETS_S["throughput"], {**job, "operators": names})
                )
        if "engine" in parts:
            for model in MODELS:
                self.runner.run(Task("engine", model, BUDGETS_S["engine"], {**job, "model": model}))
