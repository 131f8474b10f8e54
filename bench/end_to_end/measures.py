"""From runs to figures: medians and spreads of seconds, and errors of responses against fp32."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from end_to_end.cases import Case
from end_to_end.rounds import Run

from psyfast.engine import model_shape
from psyfast.model.traits import Traits
from psyfast.plan.batch import Request, plan_batch
from psyfast.plan.flops import required_flop


def case_facts(case: Case, traits: Traits) -> dict[str, Any]:
    """What a case asks for."""
    return {
        "name": case.name,
        "kind": case.kind,
        "protocol": case.protocol,
        "num_tokens": case.num_tokens,
        "num_responses": len(case.span_lengths),
        "num_scored_tokens": int(case.span_lengths.sum()),
        "gflop": sum(_sequence_gflop(sequence, traits) for sequence in case.sequences),
    }


def _gflop(ids: Sequence[int], positions: Sequence[int], traits: Traits) -> float:
    """Required for one sequence with these scored positions (psyfast.plan.flops says what counts)."""
    plan = plan_batch([Request(np.array(ids), np.unique(positions))])
    return required_flop(plan.batch, model_shape(traits)).total / 1e9


def _sequence_gflop(sequence: dict[str, Any], traits: Traits) -> float:
    positions = [position for start, stop in sequence["spans"] for position in range(start, stop)]
    return _gflop(sequence["ids"], positions, traits)


def timings(runs: Sequence[Run], facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a contender, number of threads and case: medians over the rounds; spread is (max - min) / median."""
    rows = []
    groups: dict[tuple[int, str, str], list[Run]] = {}
    for run in runs:
        for name in (run.result or {"cases": {}})["cases"]:
            groups.setdefault((run.threads, name, run.contender), []).append(run)
    for (threads, name, contender), group in groups.items():
        of_case = [run.result["cases"][name] for run in group if run.result]
        wall, cpu = ([one[clock] for one in of_case] for clock in ("wall", "cpu"))
        # psyfast's command loads within each case, and says how long that took; imports come on top of it
        loading = [
            run.result["loading"]["wall"] + one.get("loading", {"wall": 0.0})["wall"]
            for one, run in zip(of_case, group, strict=True)
            if run.result
        ]
        rows.append(
            {
                "contender": contender,
                "threads": threads,
                "case": name,
                "rounds": len(group),
                "wall_s": statistics.median(wall),
                "wall_spread": (max(wall) - min(wall)) / statistics.median(wall),
                "cpu_s": statistics.median(cpu),
                "cpu_spread": (max(cpu) - min(cpu)) / statistics.median(cpu),
                "tok_per_s": facts[name]["num_tokens"] / statistics.median(wall),
                "tok_per_cpu_s": facts[name]["num_tokens"] / statistics.median(cpu),
                "gflop_per_s": facts[name]["gflop"] / statistics.median(wall),
                "gflop_per_cpu_s": facts[name]["gflop"] / statistics.median(cpu),
                "peak_rss_bytes": statistics.median([one["peak_rss_bytes"] for one in of_case]),
                "load_wall_s": statistics.median(loading),
                "load_average": [round(run.load_average, 1) for run in group],
            }
        )
    return rows


def errors(contender: str, case: Case, nll: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Differences of responses' NLLs (summed over their tokens) to the truth's, in nats; NaN scores are counted apart."""
    starts = np.concatenate([[0], np.cumsum(case.span_lengths)[:-1]])
    mine, theirs = (np.add.reduceat(one, starts) for one in (nll, truth))
    difference = mine - theirs
    usable = np.isfinite(difference)
    kept = difference[usable]
    return {
        "contender": contender,
        "case": case.name,
        "num_responses": int(usable.sum()),
        "num_not_finite": int((~usable).sum()),
        "mean_abs_nats": float(np.abs(kept).mean()) if len(kept) else None,
        "max_abs_nats": float(np.abs(kept).max()) if len(kept) else None,
        "mean_signed_nats": float(kept.mean()) if len(kept) else None,
    }


def pair_figures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every response as a request of its own against one pass over its transcript, by threads, in processor seconds."""
    found = []
    for threads, of in _by_threads(rows).items():
        if {"one-pass", "pairs"} <= set(of):
            ratio = of["pairs"]["cpu_s"] / of["one-pass"]["cpu_s"]
            seconds = {"one_pass_cpu_s": of["one-pass"]["cpu_s"], "pairs_cpu_s": of["pairs"]["cpu_s"]}
            found.append({"threads": threads, **seconds, "ratio": ratio})
    return found


def _by_threads(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, dict[str, Any]]]:
    """Psyfast's rows in bf16 by threads and case."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["contender"].startswith("psyfast") and row["contender"].endswith("bf16"):
            found.setdefault(row["threads"], {})[row["case"]] = row
    return found


def option_figures(rows: Sequence[dict[str, Any]], cases: dict[str, Case], traits: Traits) -> list[dict[str, Any]]:
    """Options in the pass against the plain pass and against one request an option, by threads, in processor seconds.

    The requests' time is extrapolated from those that were run to all, by their floating-point operations.
    """
    found = []
    for threads, of in _by_threads(rows).items():
        if not {"without-options", "with-options", "requests"} <= set(of):
            continue
        spans = [span for sequence in cases["without-options"].sequences for span in sequence["spans"]]
        ids = cases["without-options"].sequences[0]["ids"]
        every = 4 * sum(_gflop(ids[:stop], range(stop - 2, stop), traits) for _, stop in spans)
        asked = sum(_sequence_gflop(sequence, traits) for sequence in cases["requests"].sequences)
        one_by_one = of["requests"]["cpu_s"] * every / asked
        found.append(
            {
                "threads": threads,
                "num_options": 4 * len(spans),
                "plain_cpu_s": of["without-options"]["cpu_s"],
                "with_options_cpu_s": of["with-options"]["cpu_s"],
                "ratio_to_plain": of["with-options"]["cpu_s"] / of["without-options"]["cpu_s"],
                "num_requests_run": len(cases["requests"].sequences),
                "one_by_one_cpu_s_extrapolated": one_by_one,
                "ratio_one_by_one": one_by_one / of["with-options"]["cpu_s"],
            }
        )
    return found
