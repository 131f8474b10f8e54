"""The forest, its pages and its batches against brute force."""

import numpy as np
import pytest

from psyfast.plan.batch import Branch, Request, plan_batch
from psyfast.plan.forest import Forest, common_prefix
from psyfast.plan.pages import PAGE_SLOTS, build_pages


def random_sequences(rng, num=40, vocab=3, longest=300):
    """Sequences over few symbols, many of them continuations of one another."""
    sequences = [rng.integers(0, vocab, rng.integers(1, longest))]
    for _ in range(num - 1):
        stem = sequences[rng.integers(len(sequences))]
        cut = rng.integers(0, len(stem) + 1)
        sequences.append(np.concatenate([stem[:cut], rng.integers(0, vocab, rng.integers(1, 150))]))
    return sequences


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_is_found_along_its_path(seed, share):
    rng = np.random.default_rng(seed)
    sequences = random_sequences(rng)
    forest = Forest(share)
    paths = [forest.add(ids) for ids in sequences]
    for ids, path in zip(sequences, paths, strict=True):
        assert forest.ids_of(path).tolist() == ids.tolist()
    num_tokens = sum(len(s.ids) for s in forest.segments)
    unique = {tuple(ids[:stop]) for ids in sequences for stop in range(1, len(ids) + 1)}
    assert num_tokens == (len(unique) if share else sum(map(len, sequences)))


@pytest.mark.parametrize("seed", range(5))
def test_branches_share_their_trunk_and_one_another(seed):
    rng = np.random.default_rng(seed)
    trunk_ids = rng.integers(0, 4, 200)
    forest = Forest()
    trunk = forest.add(trunk_ids)
    wanted = {tuple(trunk_ids[:stop]) for stop in range(1, 201)}
    for _ in range(50):
        start, tail = int(rng.integers(0, 200)), rng.integers(0, 4, rng.integers(0, 6))
        full = np.concatenate([trunk_ids[:start], tail])
        assert forest.ids_of(forest.branch(trunk, start, tail)).tolist() == full.tolist()
        wanted |= {tuple(full[:stop]) for stop in range(1, len(full) + 1)}
    assert sum(len(s.ids) for s in forest.segments) == len(wanted)


@pytest.mark.parametrize("share", [True, False])
def test_pages_hold_each_rows_whole_past(share):
    """Write (token, position) into the slots, copy the heads, and read every segment's past back from its pages."""
    rng = np.random.default_rng(7)
    forest = Forest(share)
    paths = [forest.add(ids) for ids in random_sequences(rng, longest=400)]
    pages = build_pages(forest)
    cache = np.full((pages.num_pages * PAGE_SLOTS, 2), -1)
    written = np.concatenate([np.stack([s.ids, np.arange(s.start, s.stop)], 1) for s in forest.segments])
    assert len(set(pages.slots_T.tolist())) == len(pages.slots_T)
    cache[pages.slots_T] = written
    assert not set(pages.copy_to.tolist()) & set(pages.slots_T.tolist())
    cache[pages.copy_to] = cache[pages.copy_from]
    for path in paths:
        last = path.segments[-1]
        kv = pages.kv_indices[pages.kv_indptr[last] : pages.kv_indptr[last + 1]]
        held = cache.reshape(-1, PAGE_SLOTS, 2)[kv].reshape(-1, 2)
        stop = (len(kv) - 1) * PAGE_SLOTS + pages.kv_last_page_len[last]
        assert stop == forest.segments[last].stop
        ids = forest.ids_of(path)
        assert held[: len(ids), 0].tolist() == ids.tolist()
        assert held[: len(ids), 1].tolist() == list(range(len(ids)))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_scores_each_wanted_token_from_its_own_past(seed, share):
    """A stand-in engine whose score of a token is a function of its whole past: both ways must agree."""
    rng = np.random.default_rng(seed)
    requests = []
    for ids in random_sequences(rng, num=25, vocab=5, longest=150):
        scored = np.unique(rng.integers(1, len(ids), 5)) if len(ids) > 1 else np.zeros(0, np.int64)
        branches = []
        for _ in range(4 if len(ids) > 1 else 0):
            start, tail = int(rng.integers(1, len(ids))), rng.integers(0, 5, rng.integers(1, 5))
            score_start = int(rng.integers(max(1, start - 1), start + len(tail)))
            branches.append(Branch(start, tail, score_start, start + len(tail)))
        requests.append(Request(ids, scored, tuple(branches)))
    plan = plan_batch(requests, share=share)
    pasts = _pasts(plan.batch)

    def found(tokens):
        batch, places = plan.batch, []
        for entry, column in zip(tokens.entry, tokens.column, strict=True):
            target = batch.target_N[entry] if column < 0 else batch.option_ids_NK[entry, column]
            places.append((pasts[batch.rows_N[entry]], int(target)))
        return places

    for request, tokens, branches in zip(requests, plan.requests, plan.branches, strict=True):
        assert found(tokens) == [(tuple(request.ids[:p]), int(request.ids[p])) for p in request.scored_positions]
        for branch, branch_tokens in zip(request.branches, branches, strict=True):
            full = np.concatenate([request.ids[: branch.start], branch.ids])
            wanted = range(branch.score_start, branch.score_stop)
            assert found(branch_tokens) == [(tuple(full[:p]), int(full[p])) for p in wanted]


def _pasts(batch):
    """The tokens each row may see, read through the page tables alone."""
    pages = batch.pages
    cache = np.full(pages.num_pages * PAGE_SLOTS, -1)
    cache[pages.slots_T] = batch.token_ids_T
    cache[pages.copy_to] = cache[pages.copy_from]
    pasts = {}
    for s in range(len(pages.qo_indptr) - 1):
        kv = pages.kv_indices[pages.kv_indptr[s] : pages.kv_indptr[s + 1]]
        held = cache.reshape(-1, PAGE_SLOTS)[kv].reshape(-1)
        for row in range(pages.qo_indptr[s], pages.qo_indptr[s + 1]):
            pasts[row] = tuple(held[: batch.positions_T[row] + 1])
    return pasts


def test_single_token_options_cost_nothing():
    ids = np.arange(10)
    plain = plan_batch([Request(ids, np.array([5, 9]))])
    branches = tuple(Branch(5, np.array([20 + i]), 5, 6) for i in range(4))
    with_options = plan_batch([Request(ids, np.array([5, 9]), branches)])
    assert len(with_options.batch.token_ids_T) == len(plain.batch.token_ids_T) == 9
    assert len(with_options.batch.rows_N) == len(plain.batch.rows_N)
    assert with_options.batch.option_ids_NK.shape == (2, 4)


def test_the_responses_own_option_reads_the_responses_own_score():
    ids = np.arange(10)
    plan = plan_batch([Request(ids, np.array([5]), (Branch(5, np.array([5]), 5, 6),))])
    assert plan.branches[0][0].entry.tolist() == plan.requests[0].entry.tolist()
    assert plan.branches[0][0].column.tolist() == [-1]


def test_more_options_than_columns_get_further_entries():
    ids = np.arange(10)
    branches = tuple(Branch(5, np.array([100 + i]), 5, 6) for i in range(150))
    plan = plan_batch([Request(ids, np.array([5]), branches)])
    assert plan.batch.option_ids_NK.shape[1] <= 64
    assert set(plan.batch.rows_N.tolist()) == {4}


def test_an_empty_plan():
    plan = plan_batch([])
    assert plan.batch.token_ids_T.shape == (0,) and plan.batch.option_ids_NK.shape == (0, 0)


def test_common_prefix():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([], int), np.array([1])) == 0
