"""Every operator beside the reference and torch, each checked and then timed, with its share of the machine's peak.

    pytest bench/operators --benchmark-quiet --benchmark-json build/bench/operators.json
    python bench/operators/table.py build/bench/operators.json

The peak is that of the same lane, level and threads, measured before and after each case; `share` holds the best round
against the best peak, `median_share` the median round. On a machine that is busy with other work, one thread's own time
says more: `--num-threads 1 --benchmark-timer time.process_time`.
"""

from __future__ import annotations

import time

import pytest
import torch
from cases import TOLERANCE, Call, Problem
from pytest_benchmark.fixture import BenchmarkFixture

from psyfast.ops import peak

SECONDS = 0.3  # of each case, roughly
MAX_ROUNDS = 300
PEAK_SECONDS = 0.05


def test_native(benchmark: BenchmarkFixture, problem: Problem, isa: str, num_threads: int) -> None:
    error = problem.error(isa)
    assert error <= TOLERANCE[problem.lane], f"{problem.name} is wrong by {error:.2g}: not timed"
    before = peak.measure_tile(problem.lane, isa, num_threads, PEAK_SECONDS)
    timed(benchmark, problem, problem.native(isa), "native", rounds=5, isa=isa)
    after = peak.measure_tile(problem.lane, isa, num_threads, PEAK_SECONDS)
    best = max(before.best, after.best)
    rate, median = (problem.flop / 1e9 / s for s in (benchmark.stats.stats.min, benchmark.stats.stats.median))
    benchmark.extra_info.update(
        error=error, peak_gflop_per_s=best, gflop_per_s=rate, share=rate / best, median_share=median / best
    )


def test_torch(benchmark: BenchmarkFixture, problem: Problem) -> None:
    timed(benchmark, problem, problem.torch(), "torch", rounds=3)


def test_reference(benchmark: BenchmarkFixture, problem: Problem) -> None:
    if problem.num_tokens > 2000:
        # The oracle is there to be right, not fast: at 8,000 tokens it alone would take most of the bench's time.
        pytest.skip("the oracle is timed at 2,000 tokens at most")
    timed(benchmark, problem, problem.reference(), "reference", rounds=1)


def timed(
    benchmark: BenchmarkFixture, problem: Problem, call: Call, backend: str, *, rounds: int, isa: str | None = None
) -> None:
    """Warm up, then as many rounds as fill SECONDS, `rounds` at least."""
    start = time.perf_counter()
    call()
    rounds = max(rounds, min(MAX_ROUNDS, int(SECONDS / (time.perf_counter() - start))))
    benchmark.group = f"{problem.name} {problem.lane.value}"
    benchmark.extra_info.update(
        operator=problem.name,
        backend=backend,
        lane=problem.lane.value,
        isa=isa,
        shape=vars(problem.shape),
        rows=problem.num_rows,
        threads=torch.get_num_threads(),
        gflop=problem.flop / 1e9,
    )
    benchmark.pedantic(call, rounds=rounds, iterations=1)
