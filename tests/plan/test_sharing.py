"""What each group of requests adds, against sets of prefixes and rows counted one by one."""

import numpy as np
import pytest

from psyfast.plan.batch import plan_batch
from psyfast.plan.join import join_plans
from psyfast.plan.sharing import added_rows, added_tokens
from psyfast.plan.windows import windows
from tests.plan.random_requests import random_requests


def prefixes_of(request):
    """Every distinct prefix whose last token must be computed."""
    ids = request.ids.tolist()
    found = {tuple(ids[: stop + 1]) for stop in range(request.num_inputs)}
    for branch in request.branches:
        whole = ids[: branch.start] + branch.ids.tolist()
        found |= {tuple(whole[: stop + 1]) for stop in range(branch.start + branch.num_own_tokens)}
    return found


@pytest.mark.parametrize("seed", range(5))
def test_added_tokens_are_the_prefixes_that_are_new(seed):
    rng = np.random.default_rng(seed)
    requests = random_requests(rng, num=40)
    groups = rng.integers(0, 3, len(requests)).tolist()
    seen = set()
    wanted = []
    for group_idx in range(3):
        new = set().union(*(prefixes_of(r) for r, g in zip(requests, groups, strict=True) if g == group_idx)) - seen
        wanted.append(len(new))
        seen |= new
    assert added_tokens([list(zip(groups, requests, strict=True))], 3) == tuple(wanted)
    assert sum(wanted) == len(plan_batch(requests).batch.token_ids_T)


@pytest.mark.parametrize("seed", range(5))
def test_added_rows_are_the_rows_that_are_new(seed):
    rng = np.random.default_rng(seed)
    requests = random_requests(rng, num=40)
    groups = rng.integers(0, 3, len(requests)).tolist()
    plan = join_plans([plan_batch(requests[:25]), plan_batch(requests[25:])])
    row_of = np.concatenate([plan.batches[0].rows_N, plan.batches[1].rows_N + len(plan.batches[0].token_ids_T)])
    seen, wanted = set(), []
    for group_idx in range(3):
        new = set()
        for idx, its_group in enumerate(groups):
            if its_group == group_idx:
                new |= set(row_of[plan.requests[idx].entry].tolist())
                for run in plan.branches[idx]:
                    new |= set(row_of[run.entry].tolist())
        wanted.append(len(new - seen))
        seen |= new
    assert added_rows(plan, groups, 3) == tuple(wanted)
    assert sum(wanted) == sum(len(np.unique(batch.rows_N)) for batch in plan.batches)


def test_nothing_to_compute_adds_nothing():
    plan = join_plans([])
    assert (plan.batches, len(plan.requests), len(plan.branches), plan.num_request_tokens) == ((), 0, 0, 0)
    assert added_rows(plan, [], 2) == (0, 0)
    assert added_tokens([], 2) == (0, 0)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("budget", [64, 1024, 4000])
def test_items_of_several_requests_stay_whole(budget, share):
    rng = np.random.default_rng(budget)
    requests = random_requests(rng, num=60)
    cuts = sorted(rng.integers(0, 60, 14).tolist())
    items = [requests[start:stop] for start, stop in zip([0, *cuts], [*cuts, 60], strict=True)]
    found = list(windows(items, lambda item: item, budget, share=share))
    assert [id(r) for window in found for item in window.items for r in item] == [id(r) for r in requests]
    for window in found:
        own = [request for item in window.items for request in item]
        assert [id(r) for batch in window.requests for r in batch] == [id(r) for r in own]
        plan = window.plan()
        assert len(plan.requests) == len(own)
        for idx, request in enumerate(own):
            targets = np.concatenate([batch.target_N for batch in plan.batches])[plan.requests[idx].entry]
            assert targets.tolist() == request.ids[request.scored_positions].tolist()
        lone = len([item for item in window.items if item]) <= 1
        for batch, of_batch in zip(window.requests, plan.batches, strict=False):
            assert len(batch) == 1 or lone or of_batch.pages.num_pages * 64 <= budget
