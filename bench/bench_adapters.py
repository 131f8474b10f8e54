"""Adapters over one base in one run: what four cost against one, scoring and loading apart, resident and streamed.

    python bench/bench_adapters.py --adapters 1 4 --rounds 3

Makes a model folder of random codes in nf4 and LoRAs over it (the 8b shape, 4 layers: 1 GB, deleted afterwards): of every
projection, and of q_proj and v_proj alone, peft's choice for Llama, where nearly nine tenths of the weights are common to all. Each
measurement is a process of its own, one of every kind in turn; processor seconds beside those by the clock, for a machine
that others use meanwhile. Scoring is the second batch of a process: the first bears what is done once. A round more with
one thread counts what loading spends in which part. Prints a JSON line for targets and a weights' mode, with medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from measuring import commit, hardware
from nf4_model import SHAPES, make_adapter, make_model

from psyfast.engine import Engine, run_together
from psyfast.model.load.adapter import AdaptedFiles
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_together
from psyfast.model.load.quantised.tensor import QuantisedTensor, RawTensor
from psyfast.model.load.shared import SharedFiles
from psyfast.ops import cpu_packing
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import plan_batch
from psyfast.plan.records import Request

MODES = {"resident": (False, 0), "streamed": (True, 0), "read ahead": (True, 1)}
"""Whether layers are streamed, and how many are read ahead."""
TARGETS: dict[str, tuple[str, ...]] = {"all": (), "qv": ("q_proj", "v_proj")}
"""Projections that the LoRAs change."""
TOKENS_A_RESPONSE = 20


def main() -> None:
    args = parse()
    if args.child:
        print(json.dumps(measured(Path(args.child), args)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="psyfast-adapters-") as name:
        folder = Path(name)
        make_model(folder / "model", args.layers, SHAPES[args.shape])
        for targets, adapter_idx in product(args.targets, range(max(args.adapters))):
            lora = folder / f"{targets}-{adapter_idx}"
            make_adapter(lora, args.layers, args.rank, SHAPES[args.shape], TARGETS[targets])
        cases = list(product(args.targets, args.modes, args.adapters))
        samples: dict[tuple[str, str, int], list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(args.rounds):
            for case in cases:
                samples[case].append(in_a_process(folder, *case, args))
        parts = {
            (targets, count): in_a_process(folder, targets, "resident", count, args, "--parts", "--threads", "1")
            for targets, count in product(args.targets, args.adapters)
        }
    for targets, mode in product(args.targets, args.modes):
        of_counts = {count: samples[targets, mode, count] for count in args.adapters}
        spent = {count: parts[targets, count] for count in args.adapters}
        print(json.dumps(line(targets, mode, of_counts, spent, args)), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4], help="in one run")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="that the LoRAs change")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the model is made; default: the system's folder for temporary files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_process(
    folder: Path, targets: str, mode: str, count: int, args: argparse.Namespace, *more: str
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(folder), "--targets", targets, "--modes", mode]
    command += ["--adapters", str(count)]
    command += ["--tokens", str(args.tokens), "--threads", str(args.threads), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One process's measurement: loading, and scoring for the second time."""
    torch.set_num_threads(args.threads)
    if args.parts:
        return time_parts(located(folder, args.targets[0], args.adapters[0]))
    operators = resolve("auto", "cpu", Lane.BF16)
    streamed, read_ahead = MODES[args.modes[0]]
    at_start = Moment.now()
    adapted = located(folder, args.targets[0], args.adapters[0])
    models = load_together(adapted, operators, streamed=streamed, read_ahead=read_ahead)
    engines = [Engine(models[0].traits, models[0].weights, operators)]
    engines += [
        Engine(one.traits, one.weights, operators, linear_nll=engines[0].linear_nll) for one in models[1:]
    ]  # the LoRAs leave the head alone
    loaded = Moment.now()
    ids = np.random.default_rng(1).integers(0, 256, args.tokens)
    batch = plan_batch([Request(ids, np.arange(1, args.tokens, TOKENS_A_RESPONSE))]).batch
    run_together(engines, batch)
    between = Moment.now()
    run_together(engines, batch)
    scored = Moment.now()
    for model in models:
        model.weights.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loading": loaded.since(at_start), "scoring": scored.since(between), "peak_rss_bytes": peak}


def located(folder: Path, targets: str, count: int) -> list[Any]:
    return [locate(f"{folder / 'model'} + {folder / f'{targets}-{adapter_idx}'}") for adapter_idx in range(count)]


@dataclass(frozen=True)
class Moment:
    """The clock and the process's processor seconds, the system's share apart."""

    clock_s: float
    processor_s: float
    system_s: float

    @classmethod
    def now(cls) -> Moment:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_stime)

    def since(self, before: Moment) -> dict[str, float]:
        return {
            "clock_s": self.clock_s - before.clock_s,
            "processor_s": self.processor_s - before.processor_s,
            "of_it_system_s": self.system_s - before.system_s,
        }


def time_parts(adapted: list[Any]) -> dict[str, float]:
    """Processor seconds of loading all layers, by part; each without the parts that it calls."""
    spent: Counter[str] = Counter()
    running: list[float] = []  # of the parts that are under way, the seconds of the parts that they called

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*values: Any, **settings: Any) -> Any:
            start = time.process_time()
            running.append(0.0)
            result = call(*values, **settings)
            seconds = time.process_time() - start
            spent[part] += seconds - running.pop()
            if running:
                running[-1] += seconds
            return result

        return wrapper

    places: list[tuple[Any, str, str]] = [
        (RawTensor, "read", "read"),
        (QuantisedTensor, "read_into", "de-quantise"),
        (SharedFiles, "read_into", "hand to each adapter"),
        (AdaptedFiles, "read_into", "merge"),
        (cpu_packing, "_pack_into", "pack"),
    ]
    with ExitStack() as patched:
        for where, name, part in places:
            patched.enter_context(mock.patch.object(where, name, timed(part, getattr(where, name))))
        timed("rest", load_together)(adapted, resolve("auto", "cpu", Lane.BF16))
    return dict(spent)


def line(
    targets: str,
    mode: str,
    samples: dict[int, list[dict[str, Any]]],
    parts: dict[int, dict[str, float]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    medians = {
        count: {stage: medians_of(taken, stage) for stage in ("loading", "scoring")} for count, taken in samples.items()
    }
    least = min(samples)
    return {
        "case": f"{args.shape}'s shape, nf4 + LoRAs",
        "targets": targets,
        "weights": mode,
        "layers": args.layers,
        "tokens": args.tokens,
        "rank": args.rank,
        "rounds": args.rounds,
        "medians_by_adapters": medians,
        "to_the_fewest": {
            count: {
                stage: {
                    unit: round(value / medians[least][stage][unit], 2)
                    for unit, value in units.items()
                    if "system" not in unit
                }
                for stage, units in stages.items()
            }
            for count, stages in medians.items()
        },
        "scoring_clock_s_of_each_round": {
            count: [round(one["scoring"]["clock_s"], 2) for one in taken] for count, taken in samples.items()
        },
        "peak_rss_bytes": {count: max(one["peak_rss_bytes"] for one in taken) for count, taken in samples.items()},
        "loading_parts_processor_s": {
            count: {part: round(seconds, 2) for part, seconds in found.items()} for count, found in parts.items()
        },
        "threads": args.threads,
        "load_average": [round(one, 1) for one in os.getloadavg()],
        "hardware": hardware(),
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }


def medians_of(taken: list[dict[str, Any]], stage: str) -> dict[str, float]:
    return {unit: round(statistics.median(one[stage][unit] for one in taken), 2) for unit in taken[0][stage]}


if __name__ == "__main__":
    main()
