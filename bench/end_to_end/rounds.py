"""Interleaved rounds: every contender scores its cases in a process of its own, one after the other, again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end.cases import Case
from end_to_end.contenders import WORKERS, Contender, environment

SECONDS_A_PROCESS = 3600


@dataclass(frozen=True)
class Bench:
    """What a round needs: model (a Hugging Face folder), the same as GGUF or None, the peers' environments, scratch."""

    model: Path
    gguf: Path | None
    peers: Path
    work: Path
    cases: Sequence[Case]


@dataclass(frozen=True)
class Run:
    """One process. result: as the worker wrote it, None where it failed. nlls: a token each, by case."""

    contender: str
    threads: int
    round_idx: int
    load_average: float
    result: dict[str, Any] | None
    nlls: dict[str, np.ndarray]
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the NLLs."""
        return {key: value for key, value in asdict(self).items() if key != "nlls"}


def run_rounds(
    bench: Bench,
    contenders: Sequence[Contender],
    threads: Sequence[int],
    repeats: int,
    before_round: Callable[[int], None],
) -> list[Run]:
    """All rounds; a contender that failed once is left out of the later rounds of the same number of threads.

    before_round: called with the number of threads.
    """
    runs: list[Run] = []
    for num_threads in threads:
        failed: set[str] = set()
        for round_idx in range(repeats):
            before_round(num_threads)
            for contender in contenders:
                if contender.name in failed:
                    continue
                run = run_once(bench, contender, num_threads, round_idx)
                if run is not None:
                    runs.append(run)
                    _say(run)
                    if run.failure:
                        failed.add(contender.name)
    return runs


def run_once(bench: Bench, contender: Contender, threads: int, round_idx: int) -> Run | None:
    """One contender's process, None where it takes none of the cases."""
    cases = [asdict(case) for case in bench.cases if case.kind in contender.kinds]
    if not cases:
        return None
    job = {
        "contender": contender.name,
        "model": str(bench.model),
        "gguf": str(bench.gguf) if contender.needs_gguf else None,
        "work": str(bench.work),
        "lane": contender.lane,
        "threads": threads,
        "settings": contender.settings,
        "cases": cases,
    }
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="psyfast-bench-") as name:
        out = Path(name)
        (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
        script = WORKERS / f"{contender.worker}_worker.py"
        done = subprocess.run(
            [str(contender.python(bench.peers)), str(script), str(out / "job.json"), str(out)],
            env=environment(contender, bench.peers, bench.work, threads),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_A_PROCESS,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()[-12:]
            failure = f"exit code {done.returncode}: " + "\n".join(lines)
            return Run(contender.name, threads, round_idx, load_average, None, {}, failure)
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        nlls = {case["name"]: np.load(out / f"{case['name']}.npy") for case in cases}
        return Run(contender.name, threads, round_idx, load_average, result, nlls)


def _say(run: Run) -> None:
    """A line on standard error as soon as a process is done."""
    if run.result is None:
        said = f"failed: {run.failure}"
    else:
        said = ", ".join(
            f"{name} {case['wall']:.2f} s (cpu {case['cpu']:.2f})" for name, case in run.result["cases"].items()
        )
    print(
        f"threads {run.threads}, round {run.round_idx}, {run.contender}, load {run.load_average:.1f}: {said}",
        file=sys.stderr,
        flush=True,
    )
