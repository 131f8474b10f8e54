"""How a worker is spoken to. Imported by every contender's own Python: nothing but the standard library and numpy.

    PYTHON xyz_worker.py JOB.json OUT

JOB.json: contender, model (a Hugging Face folder), gguf (a file, or null), lane, threads, settings, and cases: each a
name, `data` (the transcripts as psyfast reads them), `sequences` (the same as token ids, with the half-open spans of
the responses) and what psyfast is to do with them. Into the folder OUT go NAME.npy, one NLL in nats for each token of
each span in order, and result.json: seconds of wall clock and of the processor for loading and for each case, and the
largest resident set so far (VmHWM), in bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]
Case = dict[str, Any]

WARM_UP_TOKENS = 64


class Stopwatch:
    """Wall and processor seconds since it was made, until `stop`; the processor's are of all threads of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._left_out = (0.0, 0.0)
        self._taken: dict[str, float] | None = None

    def leave_out(self, wall: float, cpu: float) -> None:
        """Tell apart seconds that were spent on loading."""
        self._left_out = (self._left_out[0] + wall, self._left_out[1] + cpu)

    def stop(self) -> dict[str, float]:
        """The seconds; whatever comes later is not counted."""
        if self._taken is None:
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            self._taken = {"wall": wall - self._left_out[0], "cpu": cpu - self._left_out[1]}
        return self._taken


Scorer = Callable[[Case, Stopwatch], Sequence[np.ndarray]]
"""NLLs of a case's sequences, each [its scored tokens]."""


def serve(load: Callable[[Job], Scorer], packages: Sequence[str], *, warm_up: bool = True) -> None:
    """Load, score a few tokens once, then every case, and write what came out.

    warm_up=False: a worker whose user meets it cold.
    """
    job_path, out = map(Path, sys.argv[1:])
    job: Job = json.loads(job_path.read_text(encoding="utf-8"))
    watch = Stopwatch()
    score = load(job)
    if warm_up:
        score({"name": "warm-up", "sequences": [_beginning(job["cases"][0]["sequences"][0])]}, Stopwatch())
    result: dict[str, Any] = {
        "loading": watch.stop(),
        "versions": {name: metadata.version(name) for name in packages} | preloaded(),
        "cases": {},
    }
    for case in job["cases"]:
        watch = Stopwatch()
        nlls = score(case, watch)
        seconds = watch.stop()
        np.save(out / f"{case['name']}.npy", np.concatenate([np.asarray(nll, np.float64) for nll in nlls]))
        result["cases"][case["name"]] = {**seconds, "peak_rss_bytes": peak_rss_bytes(), **case.get("told", {})}
    (out / "result.json").write_text(json.dumps(result), encoding="utf-8")


def preloaded() -> dict[str, str]:
    """Libraries in LD_PRELOAD, for what depends on them says so."""
    return {Path(path).name: "preloaded" for path in os.environ.get("LD_PRELOAD", "").split(":") if path}


def scored_positions(sequence: dict[str, Any]) -> np.ndarray:
    """Positions of the scored tokens in the ids, span after span."""
    return np.concatenate([np.arange(start, stop) for start, stop in sequence["spans"]])


def _beginning(sequence: dict[str, Any]) -> dict[str, Any]:
    ids = sequence["ids"][:WARM_UP_TOKENS]
    return {**sequence, "ids": ids, "spans": [[1, len(ids)]]}


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, touched file pages included."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: the benchmark needs Linux")
