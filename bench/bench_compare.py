"""How often the interval of `psyfast compare` misses what it estimates, looked at after every participant.

    python bench/bench_compare.py -o build/bench/compare.json

Each simulation draws a finite population (a number of studies of a number of participants each), takes its participants in the order
of psyfast compare, and looks after every one of them from the first interval on: it has missed if the population's own value
was outside of the interval at any look. Beside it, for comparison, the plain 95 % t interval under the same looks. `until` is in
units of sd / sqrt(studies), so that a goal that is never reached, and some that are early, are among them; the worst stands in
the table. Writes one JSON document and prints the table of docs/compare.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, hardware

from psyfast.data.drawing_order import drawing_order
from psyfast.metrics.anytime import AnytimeMean, half_width

UNTILS = (0.1, 0.3, 1.0, 3.0)
DISTRIBUTIONS = ("normal", "t3", "lognormal")
STUDIES, PARTICIPANTS = (1, 5, 30, 100), (5, 20, 100)
MIXED, UNEVEN = "5 to 100", "5, one 100"


def main() -> None:
    args = parse()
    started = time.perf_counter()
    cells = []
    for num_studies in args.studies:
        for size in [*args.participants, *([MIXED, UNEVEN] if num_studies > 1 else [])]:
            sizes = sizes_of(num_studies, size)
            for spread in (0.0, 1.0) if num_studies > 1 else (0.0,):
                for name in DISTRIBUTIONS:
                    cell = {"studies": num_studies, "participants": size, "spread": spread, "distribution": name}
                    cells.append(cell | simulate(sizes, name, spread, args.simulations, args.seed))
    document = {
        "benchmark": "compare",
        "simulations": args.simulations,
        "untils": UNTILS,
        "cells": cells,
        "seconds": round(time.perf_counter() - started, 1),
        "hardware": hardware(),
        "commit": commit(),
        "command": " ".join(sys.argv),
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join(table(cells)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--studies", type=int, nargs="+", default=STUDIES)
    parser.add_argument("--participants", type=int, nargs="+", default=PARTICIPANTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def sizes_of(num_studies: int, size: int | str) -> list[int]:
    """Participants of each study."""
    if size == MIXED:
        return np.linspace(5, 100, num_studies).astype(int).tolist()
    return [5] * (num_studies - 1) + [100] if size == UNEVEN else [int(size)] * num_studies


def draw(name: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Differences of mean 0 and variance 1."""
    if name == "normal":
        return rng.standard_normal(shape)
    if name == "t3":
        return rng.standard_t(3, shape) / np.sqrt(3)
    return (rng.lognormal(0, 1, shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def simulate(sizes: list[int], name: str, spread: float, num: int, seed: int) -> dict[str, Any]:
    """Shares of simulations that ever missed, and of participants drawn, by `until`. spread: of the studies' log sd."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, spread, (len(sizes), num)))
    populations = [draw(name, rng, (size, num)) * scale[k] for k, size in enumerate(sizes)]
    truth = np.mean([values.mean(axis=0) for values in populations], axis=0)
    unit = np.sqrt(np.mean([values.var(axis=0) for values in populations], axis=0).mean() / len(sizes))
    missed, missed_t = np.zeros((len(UNTILS), num), bool), np.zeros(num, bool)
    drawn, num_looks = np.full((len(UNTILS), num), sum(sizes)), 0
    mean = AnytimeMean(sizes, (num,))
    for num_drawn, study in enumerate(drawing_order(sizes), start=1):
        mean.add(study, populations[study][mean.counts[study]])
        if not mean.has_interval or mean.is_complete:
            continue
        num_looks += 1
        error, precision = np.abs(mean.estimate - truth), mean.precision
        missed_t |= error > 1.96 * np.sqrt(precision.variance)
        for idx, until in enumerate(UNTILS):
            half = half_width(precision, until * unit)
            missed[idx] |= error > half
            drawn[idx] = np.where(half < until * unit, np.minimum(drawn[idx], num_drawn), drawn[idx])
    return {
        "looks": num_looks,
        "missed": missed.mean(axis=1).tolist(),
        "missed_fixed": float(missed_t.mean()),
        "share_drawn": (drawn.mean(axis=1) / sum(sizes)).tolist(),
    }


def table(cells: list[dict[str, Any]]) -> list[str]:
    """Coverage in percent, the worst over UNTILS: equal sd of the studies / sd that differ."""
    by_row: dict[tuple[Any, Any], dict[tuple[str, float], float]] = {}
    for cell in cells:
        row = by_row.setdefault((cell["studies"], cell["participants"]), {})
        row[cell["distribution"], cell["spread"]] = 100 * (1 - max(cell["missed"]))
        row[f"fixed {cell['distribution']}", cell["spread"]] = 100 * (1 - cell["missed_fixed"])
    lines = [
        "| studies | participants each | normal | t, 3 df | lognormal | fixed-sample interval, normal |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (studies, size), row in by_row.items():
        shown = [
            " / ".join(f"{row[name, spread]:.1f}" for spread in (0.0, 1.0) if (name, spread) in row)
            for name in (*DISTRIBUTIONS, "fixed normal")
        ]
        lines.append(f"| {studies} | {size} | {' | '.join(shown)} |")
    return lines


if __name__ == "__main__":
    main()
