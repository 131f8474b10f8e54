"""One task in a process of its own: `python3 -m bench.gpu_check.worker JOB.json` writes its rows into the job's file.

So an illegal memory access, a compiler's crash or a kernel that never returns ends one task and no other; what was written by
then counts.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import psyfast
from bench.gpu_check import ceilings, determinism, numerics, throughput
from bench.gpu_check.attention_problems import Attention, caterpillar, segments
from bench.gpu_check.cases import LANES, all_cases
from bench.gpu_check.contenders import others
from bench.gpu_check.head_problems import Head
from bench.gpu_check.machine import GIB
from bench.gpu_check.shapes import MODELS
from bench.gpu_check.timing import CudaClock
from bench.gpu_check.whole_engine import EngineCheck
from psyfast.ops.gpu.kernel_set import DeviceKernels
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators, resolve

Row = dict[str, Any]
Job = dict[str, Any]
IsLate = Callable[[], bool]
SANITIZED_COST = 3e6
SANITIZED_CASES = 6  # of an operator and lane: under a sanitizer a kernel takes a hundred times as long


def kernels_of(backend: str) -> DeviceKernels:
    """A backend's kernels."""
    if backend == "triton":
        from psyfast.ops.gpu.triton_kernels import TritonKernels

        return TritonKernels()
    from psyfast.ops.gpu.cuda_kernels import CudaKernels

    return CudaKernels()


def measured_ceilings(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """One row."""
    gib = job["free_memory_bytes"] // GIB
    sides = (4096, 8192, 16384) if gib >= 8 else (2048, 4096)
    found = ceilings.measure(device, CudaClock(), is_late, copy_bytes=GIB if gib >= 8 else GIB // 8, sides=sides)
    yield {"operator": "", "case": "ceilings", "passed": True, **found}


def checked_numerics(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """A row a case."""
    cases = [case for case in all_cases() if case.group == job["group"]]
    yield from numerics.check_cases(cases, kernels_of(job["backend"]), device, job["seed"], is_late)


def checked_determinism(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """A row a property."""
    torch.manual_seed(job["seed"])
    kernels = kernels_of(job["backend"])
    for dtype in LANES:
        made = determinism.problems(dtype, device, large=True)
        wanted = {name: problem for name, problem in made.items() if problem.operator in job["operators"]}
        yield from determinism.check_determinism(wanted, kernels, is_late)


def sanitized(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """Small cases, run and not compared: the sanitizer looks at what the kernels do."""
    kernels = kernels_of(job["backend"])
    runs: dict[tuple[str, str], int] = {}
    for case in all_cases():
        kind = (case.operator, case.label.split()[0])
        if case.cost > SANITIZED_COST or runs.get(kind, 0) >= SANITIZED_CASES:
            continue
        if is_late():
            yield {"operator": case.operator, "case": case.label, "left_out": True}
            continue
        runs[kind] = runs.get(kind, 0) + 1
        torch.manual_seed(job["seed"])
        case.make(device).run(kernels)
        torch.cuda.synchronize()
        yield {"operator": case.operator, "case": case.label, "passed": True}


def timed_kernels(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """A row a problem and contender."""
    limits = ceilings.limits_of(job["ceilings"], job["device"])
    backends = {name: kernels_of(name) for name in job["backends"]}
    usable = tuple(job["others"])
    tokens = job["num_tokens"]
    problems = [
        throughput.timed_problems(name, traits, torch.bfloat16, device, tokens=tokens, rows=(256, tokens // 4))
        for name, traits in MODELS.items()
    ]
    for problem in chain(*problems, throughput.timed_delta_rule(device, tokens=tokens)):
        if problem.operator not in job["operators"]:
            continue
        if is_late():
            yield {"operator": problem.operator, "case": problem.label, "left_out": True}
            continue
        yield from throughput.measure(
            problem,
            backends,
            CudaClock(),
            limits,
            is_late,
            usable=usable,
            l2_bytes=job["l2_bytes"],
            seed=job["seed"],
        )
        torch.cuda.empty_cache()


def timed_engine(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """A row a backend and kind of weights."""

    def operators(backend: str, lane: Lane) -> Operators:
        return resolve(backend, str(device), lane)

    check = EngineCheck(
        job["model"],
        MODELS[job["model"]],
        device,
        operators,
        num_tokens=job["num_tokens"] * 3 // 2,
        seed=job["seed"],
    )
    yield from check.run(tuple(job["backends"]), job["ceilings"]["flop_per_s"], is_late)


def warmed_others(job: Job, device: torch.device, is_late: IsLate) -> Iterator[Row]:
    """A row for everybody else who is installed and runs: they may have to compile first, which takes its time."""
    for traits in MODELS.values():
        shape = (traits.num_heads, traits.num_kv_heads, traits.head_dim, torch.bfloat16, device)
        for problem in (
            Attention.random(segments(300), *shape),
            Attention.random([caterpillar(300, 16, 4)], *shape),
            Head.random(70, 1000, 256, torch.bfloat16, device),
        ):
            for contender in others(problem):
                if is_late():
                    return
                contender.call()
                torch.cuda.synchronize()
                yield {"operator": problem.operator, "case": contender.name}


PARTS: dict[str, Callable[[Job, torch.device, IsLate], Iterator[Row]]] = {
    "ceilings": measured_ceilings,
    "numerics": checked_numerics,
    "determinism": checked_determinism,
    "sanitizer": sanitized,
    "others": warmed_others,
    "throughput": timed_kernels,
    "engine": timed_engine,
}


def plain(value: Any) -> Any:
    """Rows as JSON has them: no NaN, no infinities."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def main(path: str) -> None:
    """Runs a job; every row is in the file as soon as it is known."""
    started = time.monotonic()
    job: Job = json.loads(Path(path).read_text(encoding="utf-8"))
    psyfast.__path__.append(job["native"])  # where psyfast._cuda was built
    device = torch.device(job["torch_device"])
    with Path(job["rows"]).open("w", encoding="utf-8") as out:
        for row in PARTS[job["part"]](job, device, lambda: time.monotonic() - started > job["budget_s"]):
            out.write(json.dumps(plain(row)) + "\n")
            out.flush()
            os.fsync(out.fileno())


if __name__ == "__main__":
    main(sys.argv[1])
