"""The products whose rate is the peak are products, on every level; and a survey says what it measured."""

import pytest
import torch
from native_builds import LEVELS, Level

from psyfast.errors import BackendError
from psyfast.ops import cpu, native, peak
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve

LANES = list(Lane)
with_levels = pytest.mark.parametrize("level", LEVELS, ids=str)


def whole_numbers(num_rows: int, num_columns: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Operands whose products are exact in either lane, in any order."""
    torch.manual_seed(0)
    return tuple(torch.randint(-3, 4, (size, inner)).float() for size in (num_rows, num_columns))


@with_levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("inner", [1, 64, 129])
def test_the_tile_that_is_timed_is_a_product(level: Level, lane: Lane, inner: int, monkeypatch) -> None:
    level.activate(monkeypatch)
    x, weight = whole_numbers(6, 64, inner)
    out, timing = peak.time_tile(x, weight, lane, 5, isa=level.isa, num_threads=3, seconds=0.0)
    columns = native.load().tile_columns(level.isa)
    assert torch.equal(out[:, :columns], 5 * (x @ weight.T)[:, :columns])
    assert not out[:, columns:].any()
    assert timing.flop == 2 * 6 * columns * inner * 5 * 3
    assert len(timing.seconds) == 2
    assert min(timing.seconds) > 0


@with_levels
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(("num_rows", "num_columns", "inner"), [(1, 64, 1), (13, 128, 33), (400, 64, 70)])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_whole_product_is_one(
    level: Level, lane: Lane, num_rows: int, num_columns: int, inner: int, num_threads: int, monkeypatch
) -> None:
    level.activate(monkeypatch)
    x, weight = whole_numbers(num_rows, num_columns, inner)
    out, timing = peak.time_product(x, weight, lane, isa=level.isa, num_threads=num_threads, seconds=0.0)
    assert torch.equal(out, x @ weight.T)
    assert timing.flop == 2 * num_rows * num_columns * inner


def test_repeats_fill_their_seconds() -> None:
    x, weight = whole_numbers(6, 64, 64)
    _, timing = peak.time_tile(x, weight, Lane.FP32, 10, isa="portable", num_threads=1, seconds=0.05)
    assert len(timing.seconds) > 2
    assert sum(timing.seconds) <= 0.05 + 2 * max(timing.seconds)


def test_rates_are_of_the_fastest_and_the_median_repeat() -> None:
    timing = peak.Timing.joined([peak.Timing(6e9, (3.0, 1.0)), peak.Timing(6e9, (2.0,))])
    assert (timing.best, timing.median) == (6.0, 3.0)


@with_levels
def test_bf16_without_dot_products_is_measured_by_fp32s_tile(level: Level, monkeypatch) -> None:
    level.activate(monkeypatch)
    expected = Lane.BF16 if level.isa == "avx512_bf16" else Lane.FP32
    assert peak.tile_lane(Lane.BF16, level.isa) is expected
    assert peak.tile_lane(Lane.FP32, level.isa) is Lane.FP32


def test_a_survey_has_every_product_level_lane_and_number_of_threads() -> None:
    threads_before = torch.get_num_threads()
    rows = [row.to_dict() for row in peak.survey([1, 2], seconds=0.0, rounds=1)]
    assert torch.get_num_threads() == threads_before
    native_rows = [(product, isa) for product in ("tile", "whole") for isa in cpu.available_isas()]
    assert [(row["product"], row["isa"], row["lane"], row["threads"]) for row in rows] == [
        (product, isa, lane, threads)
        for product, isa in [*native_rows, ("torch", None)]
        for lane in ("fp32", "bf16")
        for threads in (1, 2)
    ]
    assert all(row["gflop_per_s"] >= row["median_gflop_per_s"] > 0 for row in rows)
    assert all(row["repeats"] >= 2 for row in rows)


def test_the_peak_of_operators_is_measured_once_and_only_where_they_are_native(monkeypatch) -> None:
    monkeypatch.setattr(peak, "QUICK_SECONDS", 0.01)
    peak.peak_gflop_per_s.cache_clear()
    operators = resolve("cpu", "cpu", Lane.FP32, isa="portable")
    assert peak.peak_of(operators) == peak.peak_of(operators) > 0
    assert peak.peak_gflop_per_s.cache_info().misses == 1
    peak.peak_gflop_per_s.cache_clear()
    assert peak.peak_of(resolve("reference", "cpu", Lane.FP32)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"laps": 0}, "laps is 0, expected 1 or more"),
        ({"num_threads": 0}, "num_threads is 0, expected 1 or more"),
        ({"seconds": -1.0}, "budget is -1.0+ seconds, expected 0 or more"),
        ({"seconds": float("nan")}, "budget is nan seconds"),
        ({"isa": "sse9"}, "unknown ISA level 'sse9'"),
        ({"x_RK": torch.zeros(5, 8)}, r"x has shape \[5, 8\], expected \[6, \*\]"),
        ({"x_RK": torch.zeros(6, 8).double()}, "x is torch.float64, expected torch.float32"),
        ({"weight_CK": torch.zeros(64, 9)}, r"weight has shape \[64, 9\], expected \[64, 8\]"),
    ],
)
def test_bad_arguments_of_a_tile(changes: dict, message: str) -> None:
    arguments = {
        "x_RK": torch.zeros(6, 8),
        "weight_CK": torch.zeros(64, 8),
        "lane": Lane.FP32,
        "laps": 1,
        "isa": "portable",
        "num_threads": 1,
        "seconds": 0.0,
    }
    with pytest.raises(BackendError, match=message):
        peak.time_tile(**(arguments | changes))


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.zeros(3, 8), torch.zeros(65, 8), r"\[3, 8\] by 65 columns, expected positive sizes, and whole panels"),
        (torch.zeros(0, 8), torch.zeros(64, 8), r"\[0, 8\] by 64 columns"),
        (torch.zeros(3, 8), torch.zeros(64, 7), r"weight has shape \[64, 7\], expected \[\*, 8\]"),
        (torch.zeros(3, 0), torch.zeros(64, 0), r"weights \[64, 0\], expected both sizes to be positive"),
    ],
)
def test_bad_arguments_of_a_product(x: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        peak.time_product(x, weight, Lane.FP32, isa="portable", num_threads=1, seconds=0.0)
