"""The memory plan: what is chosen fits, the limit that a refusal names does, and a smaller one does not."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyfast.errors import UsageError
from psyfast.plan.memory import (
    RESIDENT_SLOTS,
    SLACK,
    STREAMED_WINDOW_SLOTS,
    MemoryNeeds,
    ModelSizes,
    in_gb,
    plan_memory,
    smallest_limit,
)
from psyfast.plan.windows import DEFAULT_WINDOW_SLOTS, MIN_WINDOW_SLOTS

SIZES = ModelSizes(
    num_layers=24, layer_bytes=100_000_000, head_bytes=130_000_000, reading_bytes=17_000_000, slot_bytes=30_000
)
NEEDS = MemoryNeeds(limit_bytes=8_000_000_000, process_bytes=400_000_000, num_threads=2, read_ahead=1)


def plan(weights="auto", sizes=SIZES, **changes):
    return plan_memory(sizes, replace(NEEDS, **changes), weights)


def test_weights_stay_where_there_is_room():
    found = plan()
    assert (found.weights, found.window_slots, found.read_ahead) == ("resident", DEFAULT_WINDOW_SLOTS, 0)
    assert found.bytes_of["layers"] == 24 * SIZES.layer_bytes


def test_they_are_streamed_where_there_is_not():
    found = plan(limit_bytes=1_500_000_000)
    assert (found.weights, found.read_ahead) == ("streamed", 1)
    assert found.bytes_of["layers"] == 2 * SIZES.layer_bytes
    assert found.window_slots == found.max_slots > DEFAULT_WINDOW_SLOTS


def test_a_streamed_window_is_large_but_not_without_bound():
    assert plan("streamed").window_slots == STREAMED_WINDOW_SLOTS < plan("streamed").max_slots


def test_weights_are_streamed_rather_than_windows_be_tiny():
    tight = smallest_limit(SIZES, NEEDS, "resident", RESIDENT_SLOTS)
    assert plan(limit_bytes=tight).weights == "resident"
    assert plan(limit_bytes=tight - 1_000_000).weights == "streamed"
    assert plan("resident", limit_bytes=tight - 1_000_000).window_slots == RESIDENT_SLOTS - 33


def test_a_long_transcript_is_what_windows_must_hold():
    limit = smallest_limit(SIZES, NEEDS, "resident", RESIDENT_SLOTS)
    found = plan(limit_bytes=limit, slots=20_000)
    assert found.weights == "streamed" and found.max_slots >= 20_000
    with pytest.raises(UsageError, match=r"the longest transcript \(200,000 tokens\) 6\.00 GB"):
        plan(limit_bytes=limit, slots=200_000)


def test_the_windows_of_a_resumed_run_stay():
    assert plan(window_slots=1024).window_slots == 1024
    assert plan(window_slots=50_000).window_slots == 50_000
    found = plan(window_slots=50_000, limit_bytes=3_000_000_000)
    assert (found.weights, found.window_slots) == ("streamed", 50_000)
    with pytest.raises(UsageError, match="a window of 50,000 tokens"):
        plan(window_slots=50_000, limit_bytes=2_000_000_000)


def test_resident_by_order_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match=r"all layers 2\.42 GB.*--weights streamed"):
        plan("resident", limit_bytes=2_000_000_000)


sizes = st.builds(
    ModelSizes,
    num_layers=st.integers(1, 100),
    layer_bytes=st.integers(1, 2 * 10**9),
    head_bytes=st.integers(1, 4 * 10**9),
    reading_bytes=st.integers(0, 10**8),
    slot_bytes=st.integers(600, 10**6),
)
needs = st.builds(
    MemoryNeeds,
    limit_bytes=st.integers(1, 10**11),
    process_bytes=st.integers(0, 10**9),
    num_threads=st.integers(1, 200),
    read_ahead=st.integers(0, 5),
    slots=st.integers(MIN_WINDOW_SLOTS, 200_000),
    window_slots=st.none() | st.integers(1, 200_000),
)


@given(sizes=sizes, needs=needs, weights=st.sampled_from(["auto", "resident", "streamed"]))
def test_what_is_planned_fits_and_what_is_refused_fits_the_limit_that_is_named(sizes, needs, weights):
    try:
        found = plan_memory(sizes, needs, weights)
    except UsageError as error:
        named = re.search(r"--memory-limit ([\d.]+)GB or more", str(error))
        enough = replace(needs, limit_bytes=round(float(named[1]) * 1e9))
        assert enough.limit_bytes > needs.limit_bytes
        assert plan_memory(sizes, enough, weights).max_slots >= needs.slots
        too_little = replace(needs, limit_bytes=enough.limit_bytes - 20_000_000)
        if too_little.limit_bytes > 0:
            with pytest.raises(UsageError):
                plan_memory(sizes, too_little, weights)
        return
    assert sum(found.bytes_of.values()) <= needs.limit_bytes * (1 - SLACK)
    assert found.max_slots >= max(needs.slots, found.window_slots)
    assert weights in ("auto", found.weights)
    assert needs.window_slots in (None, found.window_slots)


@given(slots=st.integers(30_000, 10**6))
def test_the_limit_for_a_longer_transcript_holds_it(slots):
    found = plan("streamed", limit_bytes=1_500_000_000)
    larger = plan("streamed", limit_bytes=found.limit_for(slots) + 1)
    assert larger.max_slots == slots


def test_sizes_are_rounded_up_for_people():
    assert in_gb(1_000_000_000) == "1.00 GB" and in_gb(1_000_000_001) == "1.01 GB"
