"""What errors are measured against: transformers in fp32 with the same weights, kept under `work` once computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from end_to_end.cases import Case
from end_to_end.contenders import PLAIN, TRUTH
from end_to_end.rounds import Bench, run_once


def true_nlls(bench: Bench, threads: int) -> dict[str, np.ndarray]:
    """NLL of each token of the cases that peers take, by case."""
    cases = [case for case in bench.cases if case.kind in PLAIN]
    places = {case.name: _place(bench, case) for case in cases}
    missing = [case for case in cases if not places[case.name].is_file()]
    if missing:
        run = run_once(replace(bench, cases=missing), TRUTH, threads, 0)
        if run is None or run.failure:
            raise SystemExit(f"the reference ({TRUTH.name}) failed: {run.failure if run else 'no cases'}")
        for name, nll in run.nlls.items():
            places[name].parent.mkdir(exist_ok=True)
            np.save(places[name], nll)
    return {name: np.load(place) for name, place in places.items()}


def _place(bench: Bench, case: Case) -> Path:
    """Named after the weights and the token ids, so that neither can change unnoticed."""
    digest = hashlib.sha256(json.dumps(case.sequences).encode())
    for path in sorted(bench.model.glob("*.safetensors")):
        state = path.stat()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}".encode())
    return bench.work / "truth" / f"{digest.hexdigest()[:32]}.npy"
