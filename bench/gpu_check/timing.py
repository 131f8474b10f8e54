"""Times that mean something: warmed up, interleaved, inputs rotated past the L2 cache, medians with their spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Call = Callable[[], object]


class Clock(Protocol):
    """Measures how long a device is busy with a call."""

    def seconds(self, call: Call) -> float: ...


HEAD_START_CYCLES = 2_000_000  # about a millisecond


class CudaClock:
    """By CUDA events around the call, on the current stream."""

    def seconds(self, call: Call) -> float:
        """The device sleeps while the call is queued, so that a launch that takes longer than its kernel is not measured."""
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(HEAD_START_CYCLES)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) * 1e-3


class WallClock:
    """For a device that computes while it is called: the CPU."""

    def seconds(self, call: Call) -> float:
        """Wall clock."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


@dataclass(frozen=True)
class Timing:
    """Median of some rounds; spread: (largest − smallest) / median."""

    median_s: float
    spread: float
    rounds: int


def timed(
    contenders: Mapping[str, Sequence[Call]], clock: Clock, rounds: int, is_late: Callable[[], bool]
) -> dict[str, Timing]:
    """Medians of all contenders, one of each in turn; each has the same call over several sets of inputs, which rotate.

    Two rounds warm up. When the time is up, the rounds so far count.
    """
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for round_idx in range(-2, rounds):
        if round_idx > 0 and is_late():
            break
        for name, calls in contenders.items():
            taken = clock.seconds(calls[round_idx % len(calls)])
            if round_idx >= 0:
                samples[name].append(taken)
    return {name: summary(taken) for name, taken in samples.items()}


def summary(taken: Sequence[float]) -> Timing:
    """Of samples in seconds."""
    median = statistics.median(taken)
    return Timing(median, (max(taken) - min(taken)) / median if median else 0.0, len(taken))


def copies_beyond(l2_bytes: int, input_bytes: float, most: int = 8) -> int:
    """How many sets of inputs it takes to pass the L2 cache twice between two uses of one."""
    return max(1, min(most, -(-2 * l2_bytes // max(1, int(input_bytes)))))
