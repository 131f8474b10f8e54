"""Windows are cut by what their forest takes, and a lone request's options are split where nothing is shared."""

import numpy as np
import pytest

from psyfast.plan import batch as batch_module
from psyfast.plan.batch import plan_batch
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Branch, Request
from psyfast.plan.reference import ReferenceBuilder
from psyfast.plan.windows import windows
from tests.plan.plan_reading import PastReader, assert_same
from tests.plan.random_requests import random_requests


def cut(requests, budget, *, share=True):
    """Windows of requests, each as the list of its items."""
    return list(windows(requests, lambda request: (request,), budget, share=share))


def slots(requests, share):
    return plan_batch(requests, share=share).batch.pages.num_pages * PAGE_SLOTS


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [0, 64, 1000, 1024, 4000])
@pytest.mark.parametrize("seed", range(3))
def test_a_window_takes_what_its_forest_has_room_for(seed, budget, share):
    requests = random_requests(np.random.default_rng(seed), num=60)
    got = [window.items for window in cut(requests, budget, share=share)]
    wanted = [[requests[0]]]
    for request in requests[1:]:
        if slots([*wanted[-1], request], share) <= budget:
            wanted[-1].append(request)
        else:
            wanted.append([request])
    assert [[id(request) for request in window] for window in got] == [[id(r) for r in window] for window in wanted]


def test_a_window_is_planned_as_its_requests_are():
    requests = random_requests(np.random.default_rng(1), num=60)
    found_windows = cut(requests, 2000)
    assert len(found_windows) > 3
    for window in found_windows:
        assert_same(window.plan(), plan_batch(window.items))


def test_the_reference_cuts_the_same(monkeypatch):
    requests = random_requests(np.random.default_rng(2), num=40)
    native = [len(window.items) for window in cut(requests, 2000)]
    monkeypatch.setattr(batch_module, "_builder_type", lambda: ReferenceBuilder)
    assert [len(window.items) for window in cut(requests, 2000)] == native


def test_where_a_window_begins_decides_where_it_ends():
    """A run resumed at any window's border cuts what is left as the unbroken one did."""
    requests = random_requests(np.random.default_rng(3), num=60)
    sizes = [len(window.items) for window in cut(requests, 1500)]
    for done in range(1, len(sizes)):
        assert [len(window.items) for window in cut(requests[sum(sizes[:done]) :], 1500)] == sizes[done:]


def test_prefixes_of_one_another_are_one_window():
    """Every response of a transcript as a request of its own: together no larger than the transcript."""
    ids = np.random.default_rng(4).integers(0, 1000, 9000)
    requests = [Request(ids[:stop], np.arange(stop - 5, stop)) for stop in range(10, 9010, 10)]
    (window,) = cut(requests, 9024)
    assert len(window.items) == 900
    assert len(window.plan().batch.token_ids_T) == 8999


def test_what_is_larger_than_a_window_stands_alone():
    small, large = Request(np.arange(40), np.array([39])), Request(np.arange(2000) + 7, np.array([1999]))
    prefix = Request(large.ids[:100], np.array([99]))
    got = [len(window.items) for window in cut([small, large, prefix, small, small], 1024)]
    assert got == [1, 1, 3]


def test_no_items_are_no_window():
    assert cut([], 1024) == []


def many_options():
    """A transcript with options of no, one and more tokens of their own, in any order."""
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 9, 700)
    branches = []
    for start in rng.integers(1, 700, 60).tolist():
        own = rng.integers(0, 12, rng.integers(1, 5))
        branches.append(Branch(start, own, start, start + len(own)))
    return Request(ids, np.array([5, 650, 699]), tuple(branches))


@pytest.mark.parametrize("budget", [64, 704, 1024, 5000])
def test_unshared_options_are_split_over_batches(budget):
    request = many_options()
    (window,) = cut([request], budget, share=False)
    plan = window.plan()
    sizes = [batch.pages.num_pages * PAGE_SLOTS for batch in plan.batches]
    assert len(sizes) > 1
    assert max(sizes) <= max(budget, 704)  # of 700 tokens, which stand alone if they must
    assert sum(sizes) == slots([request], share=False)
    own = [branch for branch in request.branches if branch.num_own_tokens]
    assert sum(len(batch.token_ids_T) for batch in plan.batches) == 699 + sum(
        branch.start + branch.num_own_tokens for branch in own
    )
    assert plan.num_request_tokens == request.num_tokens == plan_batch([request]).num_request_tokens


@pytest.mark.parametrize("budget", [704, 3000])
def test_split_options_score_the_same_tokens_from_the_same_pasts(budget):
    request = many_options()
    (window,) = cut([request], budget, share=False)
    split, whole = window.plan(), plan_batch([request])
    in_split, in_whole = PastReader(split), PastReader(whole)
    assert in_split.found(split.requests[0]) == in_whole.found(whole.requests[0])
    assert len(split.branches) == 1
    assert len(split.branches[0]) == 60
    for one, other in zip(split.branches[0], whole.branches[0], strict=True):
        assert in_split.found(one) == in_whole.found(other)


def test_shared_options_are_one_batch():
    (window,) = cut([many_options()], 64)
    assert len(window.plan().batches) == 1
