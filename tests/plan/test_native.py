"""The native planner against the one in Python: the same arrays, the same sizes on the way, the same refusals."""

import re
import sys

import numpy as np
import pytest

from psyfast import _native
from psyfast.errors import RequestError
from psyfast.plan import batch as batch_module
from psyfast.plan.batch import batch_builder, plan_batch
from psyfast.plan.native import NativeBuilder
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Branch, Request
from psyfast.plan.reference import MAX_OPTION_COLUMNS, ReferenceBuilder
from tests.plan.plan_reading import assert_same
from tests.plan.random_requests import random_requests

BUILDERS = [NativeBuilder, ReferenceBuilder]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(60))
def test_both_planners_give_the_same_arrays(seed, share):
    rng = np.random.default_rng(seed)
    requests = random_requests(rng, num=int(rng.integers(1, 40)), vocab=int(rng.integers(1, 6)))
    native, reference = NativeBuilder(share=share), ReferenceBuilder(share=share)
    done = 0
    while done < len(requests):  # in lots of any size, with any limit, or none
        lot = requests[done : done + int(rng.integers(1, 8))]
        limit = None if rng.integers(2) else int(rng.integers(0, 6000))
        added = native.add(lot, limit)
        assert added == reference.add(lot, limit)
        for name in ("num_requests", "num_tokens", "num_slots"):
            assert getattr(native, name) == getattr(reference, name)
        assert_same(native.finish(), reference.finish())
        done += max(1, added)


def test_both_give_a_rows_many_options_the_same_columns_and_entries():
    """More options than one entry has columns, and more targets of one row than one; options that are targets too."""
    rng = np.random.default_rng(7)
    stem = rng.integers(0, 9, 70)
    requests = []
    for target in rng.integers(100, 900, 5):
        options = rng.integers(100, 900, 150)
        branches = tuple(Branch(70, np.array([option, 1]), 70, 70 + int(rng.integers(1, 3))) for option in options)
        requests.append(Request(np.concatenate([stem, [target]]), np.array([70]), branches))
    plan = plan_batch(requests)
    assert plan.batch.option_ids_NK.shape[1] == MAX_OPTION_COLUMNS
    assert len(np.flatnonzero(plan.batch.rows_N == 69)) > 5
    reference = ReferenceBuilder()
    reference.add(requests)
    assert_same(plan, reference.finish())


@pytest.mark.parametrize("share", [True, False])
def test_a_request_that_is_left_out_leaves_no_trace(share):
    """Also in the table of forks, which must find everything after it was taken back from and grew again."""
    rng = np.random.default_rng(3)
    builder, plain = NativeBuilder(share=share), NativeBuilder(share=share)
    num_refused = 0
    for _ in range(20):
        requests = random_requests(rng, num=20, vocab=3)
        kept = [request for request in requests if builder.add([request], builder.num_slots + 4 * PAGE_SLOTS)]
        num_refused += len(requests) - len(kept)
        plain.add(kept)
    assert num_refused > 20
    assert_same(builder.finish(), plain.finish())


def test_a_builder_says_how_large_its_batch_is():
    rng = np.random.default_rng(4)
    for share in (True, False):
        builder = batch_builder(share=share)
        for request in random_requests(rng):
            builder.add([request])
            batch = builder.finish().batch
            assert builder.num_tokens == len(batch.token_ids_T)
            assert builder.num_slots == batch.pages.num_pages * PAGE_SLOTS


def test_constants_of_both_planners_agree():
    assert (_native.PAGE_SLOTS, _native.MAX_OPTION_COLUMNS) == (PAGE_SLOTS, MAX_OPTION_COLUMNS)
    assert _native.MAX_OPTION_COLUMNS <= _native.MAX_OPTIONS


def test_where_the_native_module_is_not_built_the_reference_plans(monkeypatch):
    requests = random_requests(np.random.default_rng(5))
    native = plan_batch(requests)
    assert isinstance(batch_builder(), NativeBuilder)
    monkeypatch.setitem(sys.modules, "psyfast._native", None)
    monkeypatch.delattr("psyfast._native")
    monkeypatch.delitem(sys.modules, "psyfast.plan.native")
    batch_module._builder_type.cache_clear()
    try:
        assert isinstance(batch_builder(), ReferenceBuilder)
        assert_same(plan_batch(requests), native)
    finally:
        batch_module._builder_type.cache_clear()


IDS = np.arange(12)
NONE = np.zeros(0, np.int64)
BAD_REQUESTS = {
    "negative id": (Request(np.array([3, -7, 5]), NONE), "request 1 has token id -7 at 1"),
    "position 0": (Request(IDS, np.array([4, 0])), "request 1 scores position 0, expected 1 to 11"),
    "position beyond": (Request(IDS, np.array([12])), "request 1 scores position 12"),
    "position of nothing": (Request(NONE, np.array([1])), "request 1 scores position 1, expected 1 to -1"),
    "late branch": (Request(IDS, NONE, (Branch(13, IDS, 13, 14),)), "branch 0 starts at 13, expected 0 to 12"),
    "early branch": (Request(IDS, NONE, (Branch(-1, IDS, 1, 2),)), "branch 0 starts at -1"),
    "negative branch id": (
        Request(IDS, NONE, (Branch(2, np.array([-1]), 2, 3),)),
        "request 1, branch 0 has token id -1",
    ),
    "score_stop beyond": (Request(IDS, NONE, (Branch(2, IDS[:3], 2, 6),)), "scores positions 2 to 6 (half-open)"),
    "score_start 0": (Request(IDS, NONE, (Branch(0, IDS[:3], 0, 2),)), "scores positions 0 to 2"),
    "score_stop first": (Request(IDS, NONE, (Branch(5, IDS[:3], 6, 5),)), "scores positions 6 to 5"),
    "second branch": (Request(IDS, NONE, (Branch(5, IDS, 6, 7), Branch(12, IDS, 0, 7))), "request 1, branch 1"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_refused_by_both_with_the_same_words(name):
    bad, words = BAD_REQUESTS[name]
    messages = []
    for make in BUILDERS:
        builder = make()
        with pytest.raises(RequestError, match=re.escape(words)) as caught:
            builder.add([Request(IDS, np.array([3])), bad])
        messages.append(str(caught.value))
        assert builder.num_requests == builder.num_tokens == 0
    assert messages[0] == messages[1]


@pytest.mark.parametrize("make", BUILDERS)
@pytest.mark.parametrize(
    "bad",
    [
        Request(np.array([1.0, 2.0]), NONE),
        Request(IDS, np.array([1.0])),
        Request(IDS.reshape(3, 4), NONE),
        Request(IDS, NONE, (Branch(1, np.array([0.5]), 1, 2),)),
    ],
    ids=["float ids", "float positions", "a table of ids", "float branch"],
)
def test_arrays_of_another_kind_are_refused(make, bad):
    with pytest.raises(RequestError):
        make().add([Request(IDS, np.array([3])), bad])


def arrays(**changes):
    """Two requests with a branch each, as the native builder takes them."""
    given = {
        "ids": IDS,
        "ids_indptr": [0, 5, 12],
        "scored_positions": [1, 6],
        "scored_indptr": [0, 1, 2],
        "branch_indptr": [0, 1, 2],
        "branch_start": [1, 2],
        "branch_ids": [3, 4, 5],
        "branch_ids_indptr": [0, 1, 3],
        "score_start": [1, 2],
        "score_stop": [2, 4],
    }
    return {name: np.array(values) for name, values in {**given, **changes}.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids_indptr": [0, 5]}, "ids_indptr runs from 0 to 5, expected 0 to 12"),
        ({"scored_indptr": [0, 2]}, "scored_indptr has 2 elements, expected 3"),
        ({"ids_indptr": np.zeros(0, np.int64)}, "ids_indptr is empty"),
        ({"ids_indptr": [0, 13, 12]}, "ids_indptr falls from 13 to 12 at 2"),
        ({"ids_indptr": [1, 5, 12]}, "ids_indptr runs from 1 to 12, expected 0 to 12"),
        ({"ids_indptr": [0, 5, 13]}, "ids_indptr runs from 0 to 13, expected 0 to 12"),
        ({"scored_indptr": [0, 2, 1]}, "scored_indptr falls from 2 to 1"),
        ({"scored_positions": [1]}, "expected 0 to 1, the size of scored_positions"),
        ({"branch_indptr": [0, 1, 3]}, "expected 0 to 2, the size of branch_start"),
        ({"branch_ids_indptr": [0, 3]}, "branch_ids_indptr has 2 elements, expected 3"),
        ({"branch_ids_indptr": [0, -1, 3]}, "branch_ids_indptr falls from 0 to -1"),
        ({"score_start": [1]}, "score_start has 1 elements, expected 2"),
        ({"score_stop": [2, 4, 4]}, "score_stop has 3 elements, expected 2"),
        ({"ids": IDS.astype(np.int32)}, "ids has dtype int32 and 1 dimensions"),
        ({"ids": IDS.reshape(3, 4)}, "ids has dtype int64 and 2 dimensions"),
        ({"score_stop": [2.0, 4.0]}, "score_stop has dtype float64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, words):
    builder = _native.BatchBuilder(share=True)
    assert builder.add(max_slots=-1, **arrays()) == 2
    before = builder.num_tokens, builder.num_requests
    with pytest.raises(ValueError, match=re.escape(words)):
        builder.add(max_slots=-1, **arrays(**changes))
    assert (builder.num_tokens, builder.num_requests) == before


def test_arrays_with_gaps_are_refused():
    with pytest.raises(ValueError, match="ids has dtype int64 and 1 dimensions, expected one of contiguous int64"):
        _native.BatchBuilder(share=True).add(max_slots=-1, **{**arrays(), "ids": np.arange(24)[::2]})


def test_arrays_outlive_their_builder():
    requests = random_requests(np.random.default_rng(6))
    plan = plan_batch(requests)
    batch = plan.batch
    copies = batch.token_ids_T.copy(), batch.pages.kv_indices.copy()
    del plan
    for seed in range(5):
        plan_batch(random_requests(np.random.default_rng(seed)))
    assert np.array_equal(batch.token_ids_T, copies[0])
    assert np.array_equal(batch.pages.kv_indices, copies[1])
