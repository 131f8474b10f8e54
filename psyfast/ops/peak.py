"""How fast this machine multiplies matrices: what a share of the peak is a share of.

tile     one register tile, both operands in the first-level cache: the limit of a level's multiply-adds, which no
         product passes. This is the peak.
whole    rows times weights that are packed once, multiplied as the operators do (csrc/product_body.inc)
torch    torch.mm of the same sizes

A bf16 lane without dot products of its own (every level but avx512_bf16) multiplies by fp32's multiply-adds, so its
tile is fp32's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from psyfast.ops import native
from psyfast.ops.cpu import available_isas
from psyfast.ops.cpu_packing import pack
from psyfast.ops.native import check, guarded
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators

TILE_WORDS = 64  # of the inner dimension: 16 KB of weights, half of the smallest first-level cache in use
TILE_FLOP = 1e8  # of a repeat, a thread: 0.4 ms where bf16 is fastest, 3 ms on the portable level
ROWS_A_THREAD, INNER, COLUMNS = 192, 1024, 1024  # of a whole product
QUICK_SECONDS = 0.05
SURVEY_SECONDS = 0.04  # of each product in a round
SURVEY_ROUNDS = 3
DTYPE = {Lane.FP32: torch.float32, Lane.BF16: torch.bfloat16}


@dataclass(frozen=True)
class Timing:
    """Repeats of one product: its floating-point operations, and the seconds that each took."""

    flop: float
    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """GFLOP/s of the fastest repeat: what the machine can do when nobody else wants it."""
        return self.flop / min(self.seconds) / 1e9

    @classmethod
    def joined(cls, timings: Sequence[Timing]) -> Timing:
        """All repeats of the same product."""
        return cls(timings[0].flop, tuple(taken for timing in timings for taken in timing.seconds))

    @property
    def median(self) -> float:
        """GFLOP/s of the median repeat."""
        return self.flop / statistics.median(self.seconds) / 1e9


@dataclass(frozen=True)
class Measured:
    """One row of a survey: a product (`tile`, `whole` or `torch`; isa is None for torch), and how fast it was."""

    product: str
    isa: str | None
    lane: Lane
    num_threads: int
    timing: Timing

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Plain data, for JSON."""
        return {
            "product": self.product,
            "isa": self.isa,
            "lane": self.lane.value,
            "threads": self.num_threads,
            "gflop_per_s": round(self.timing.best, 1),
            "median_gflop_per_s": round(self.timing.median, 1),
            "repeats": len(self.timing.seconds),
        }


def time_tile(
    x_RK: Tensor, weight_CK: Tensor, lane: Lane, laps: int, *, isa: str, num_threads: int, seconds: float
) -> tuple[Tensor, Timing]:
    """A tile [6, 64] of laps · x · weightᵀ, zeros behind the level's own columns; every thread computes it.

    Repeats go on for `seconds`, twice at least. Raises BackendError for bad arguments.
    """
    module = native.load()
    check("x", x_RK, torch.float32, (module.TILE_ROWS, None))
    check("weight", weight_CK, torch.float32, (module.PANEL_COLUMNS, x_RK.shape[1]))
    panel = pack("weight", weight_CK, lane)
    out_RC = torch.empty(x_RK.shape[0], weight_CK.shape[0])
    flop, taken = guarded(
        lambda: module.time_tile(
            x=x_RK.data_ptr(),
            panel=panel.data_ptr(),
            inner=x_RK.shape[1],
            lane=lane.value,
            laps=laps,
            out=out_RC.data_ptr(),
            seconds=seconds,
            num_threads=num_threads,
            isa=isa,
        )
    )
    return out_RC, Timing(flop, tuple(taken))


def time_product(
    x_MK: Tensor, weight_NK: Tensor, lane: Lane, *, isa: str, num_threads: int, seconds: float
) -> tuple[Tensor, Timing]:
    """X · weightᵀ [M, N], N a multiple of 64, the rows shared out over threads.

    Repeats go on for `seconds`, twice at least; conversion and packing are not timed. Raises BackendError.
    """
    module = native.load()
    check("x", x_MK, torch.float32, (None, None))
    check("weight", weight_NK, torch.float32, (None, x_MK.shape[1]))
    panels = pack("weight", weight_NK, lane)
    num_rows, num_columns = x_MK.shape[0], weight_NK.shape[0]
    out_PMC = torch.empty(-(-num_columns // module.PANEL_COLUMNS), num_rows, module.PANEL_COLUMNS)
    flop, taken = guarded(
        lambda: module.time_product(
            x=x_MK.data_ptr(),
            num_rows=num_rows,
            inner=x_MK.shape[1],
            panels=panels.data_ptr(),
            num_columns=num_columns,
            lane=lane.value,
            out=out_PMC.data_ptr(),
            seconds=seconds,
            num_threads=num_threads,
            isa=isa,
        )
    )
    return out_PMC.transpose(0, 1).flatten(1), Timing(flop, tuple(taken))


def tile_lane(lane: Lane, isa: str) -> Lane:
    """The lane whose tile is a lane's limit: its own, or fp32's where bf16 has no dot products."""
    return lane if guarded(lambda: native.load().has_bf16_dots(isa)) else Lane.FP32


def measure_tile(lane: Lane, isa: str, num_threads: int, seconds: float) -> Timing:
    """The machine's peak in a lane at an ISA level."""
    module = native.load()
    lane = tile_lane(lane, isa)
    inner = TILE_WORDS * (2 if lane is Lane.BF16 else 1)
    columns = guarded(lambda: module.tile_columns(isa))
    laps = round(TILE_FLOP / (2 * module.TILE_ROWS * columns * inner))
    x_RK, weight_CK = _drawn(module.TILE_ROWS, module.PANEL_COLUMNS, inner)
    return time_tile(x_RK, weight_CK, lane, laps, isa=isa, num_threads=num_threads, seconds=seconds)[1]


def measure_product(lane: Lane, isa: str, num_threads: int, seconds: float) -> Timing:
    """A whole product as the operators compute it."""
    x_MK, weight_NK = _drawn(ROWS_A_THREAD * num_threads, COLUMNS, INNER)
    return time_product(x_MK, weight_NK, lane, isa=isa, num_threads=num_threads, seconds=seconds)[1]


def measure_torch(lane: Lane, num_threads: int, seconds: float) -> Timing:
    """The same product by torch, whose number of threads is put back afterwards."""
    x_MK, weight_NK = (t.to(DTYPE[lane]) for t in _drawn(ROWS_A_THREAD * num_threads, COLUMNS, INNER))
    out_MN = torch.empty(x_MK.shape[0], COLUMNS, dtype=DTYPE[lane])
    taken: list[float] = []
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        torch.mm(x_MK, weight_NK.T, out=out_MN)  # the first call chooses and compiles its kernel
        started = time.perf_counter()
        while len(taken) < 2 or time.perf_counter() - started < seconds:
            start = time.perf_counter()
            torch.mm(x_MK, weight_NK.T, out=out_MN)
            taken.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads_before)
    return Timing(2.0 * x_MK.shape[0] * COLUMNS * INNER, tuple(taken))


def _drawn(num_rows: int, num_columns: int, inner: int) -> tuple[Tensor, Tensor]:
    """Numbers as models have them, in a generator of their own: the caller's random state is left alone."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, inner, generator=random), torch.randn(num_columns, inner, generator=random)


@cache
def peak_gflop_per_s(lane: Lane, isa: str, num_threads: int) -> float:
    """The peak in a lane, at a level, with so many threads: measured once a process, in QUICK_SECONDS."""
    return measure_tile(lane, isa, num_threads, QUICK_SECONDS).best


def peak_of(operators: Operators, *, at_least: float = 0.0) -> float | None:
    """GFLOP/s that the operators could reach with torch's number of threads; None unless all of them are native.

    at_least: what was measured before: it is measured once more, and the higher one is returned. For so short a time two threads
    may well be given one core.
    """
    if operators.isa is None or set(operators.backend_of.values()) != {"cpu"}:
        return None
    measure = peak_gflop_per_s.__wrapped__ if at_least else peak_gflop_per_s
    return max(at_least, measure(operators.lane, operators.isa, torch.get_num_threads()))


def survey(
    num_threads: Sequence[int], *, seconds: float = SURVEY_SECONDS, rounds: int = SURVEY_ROUNDS
) -> list[Measured]:
    """Every product at every level and lane, with these numbers of threads, in interleaved rounds."""
    levels: dict[str, list[str | None]] = {"tile": [*available_isas()], "whole": [*available_isas()], "torch": [None]}
    found: dict[tuple[str, str | None, Lane, int], list[Timing]] = {
        (product, isa, lane, threads): []
        for product, isas in levels.items()
        for isa in isas
        for lane in Lane
        for threads in num_threads
    }
    for _ in range(rounds):
        for (product, isa, lane, threads), timings in found.items():
            if isa is None:
                timings.append(measure_torch(lane, threads, seconds))
            elif product == "whole":
                timings.append(measure_product(lane, isa, threads, seconds))
            elif tile_lane(lane, isa) is lane:
                timings.append(measure_tile(lane, isa, threads, seconds))
            else:  # the same product, the same figure
                timings.append(found[product, isa, Lane.FP32, threads][-1])
    return [Measured(*case, Timing.joined(timings)) for case, timings in found.items()]
