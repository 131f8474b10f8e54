"""The forest, its pages and its batches against brute force."""

import numpy as np
import pytest

from psyfast.plan.batch import Branch, Request, plan_batch
from psyfast.plan.forest import Forest, common_prefix
from psyfast.plan.pages import PAGE_SLOTS, build_pages
from tests.plan.plan_reading import PastReader
from tests.plan.random_requests import random_requests


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


def test_a_sequence_that_goes_on_makes_its_segment_longer():
    """Growing prefixes are one segment, whatever else forks off it meanwhile."""
    ids = np.arange(500) % 7
    forest = Forest()
    for stop in range(3, 500, 3):
        forest.add(ids[:stop])
        fork = forest.add(np.concatenate([ids[: stop - 1], [9]]))
        assert len(fork.segments) == 2
    trunk = forest.add(ids)
    assert trunk.segments == (0,)
    assert forest.branch(trunk, 500, np.array([8, 8])).segments == (0,)
    assert sum(len(s.ids) for s in forest.segments) == 502 + len(range(3, 500, 3))


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_holds_subtrees_in_one_piece_and_forks_by_position(seed):
    forest = Forest()
    for ids in random_sequences(np.random.default_rng(seed)):
        forest.add(ids)

    def way(segment_idx):
        """(fork position, order of addition) of the segment's ancestors and of itself."""
        segment = forest.segments[segment_idx]
        above = () if segment.parent < 0 else way(segment.parent)
        return (*above, (segment.start, segment_idx))

    assert forest.batch_order() == sorted(range(len(forest.segments)), key=way)


def test_a_trunks_branches_stand_by_position_in_a_batch():
    rng = np.random.default_rng(0)
    starts = rng.permutation(np.arange(10, 400, 10))
    branches = tuple(Branch(int(start), np.array([500, 501, 502]), start, start + 3) for start in starts)
    pages = plan_batch([Request(np.arange(400), np.array([399]), branches)]).batch.pages
    assert pages.first_position.tolist() == [0, *sorted(starts)]


@pytest.mark.parametrize("share", [True, False])
def test_pages_hold_each_rows_whole_past(share):
    """Write (token, position) into the slots, copy the heads, and read every segment's past back from its pages."""
    rng = np.random.default_rng(7)
    forest = Forest(share)
    paths = [forest.add(ids) for ids in random_sequences(rng, longest=400)]
    pages = build_pages(forest.segments)
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
    reader = PastReader(plan)
    for request, tokens, branches in zip(requests, plan.requests, plan.branches, strict=True):
        assert reader.found(tokens) == [(tuple(request.ids[:p]), int(request.ids[p])) for p in request.scored_positions]
        for branch, branch_tokens in zip(request.branches, branches, strict=True):
            full = np.concatenate([request.ids[: branch.start], branch.ids])
            wanted = range(branch.score_start, branch.score_stop)
            assert reader.found(branch_tokens) == [(tuple(full[:p]), int(full[p])) for p in wanted]


def test_an_options_first_token_costs_no_row():
    ids = np.arange(10)
    plain = plan_batch([Request(ids, np.array([9]))])
    for num_tokens in (1, 2, 3):
        own = [np.array([20 + i, 1, 2][:num_tokens]) for i in range(4)]
        branches = tuple(Branch(5, option, 5, 5 + num_tokens) for option in own)
        plan = plan_batch([Request(ids, np.array([9]), branches)])
        assert len(plan.batch.token_ids_T) == len(plain.batch.token_ids_T) + 4 * (num_tokens - 1)
        assert len(plan.batch.pages.first_position) == (5 if num_tokens > 1 else 1)


@pytest.mark.parametrize("share", [True, False])
def test_single_token_options_cost_nothing(share):
    ids = np.arange(10)
    plain = plan_batch([Request(ids, np.array([5, 9]))], share=share)
    branches = tuple(Branch(5, np.array([20 + i]), 5, 6) for i in range(4))
    with_options = plan_batch([Request(ids, np.array([5, 9]), branches)], share=share)
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


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_runs_of_copies_are_the_copies(seed, share):
    pages = plan_batch(random_requests(np.random.default_rng(seed)), share=share).batch.pages
    copies = [
        (page_from * PAGE_SLOTS + slot, page_to * PAGE_SLOTS + slot)
        for page_from, page_to, start, stop in pages.copy_runs.tolist()
        for slot in range(start, stop)
    ]
    assert copies == list(zip(pages.copy_from.tolist(), pages.copy_to.tolist(), strict=True))
    assert bool(copies) == share
    runs = pages.copy_runs
    assert ((runs[:, 2] >= 0) & (runs[:, 2] < runs[:, 3]) & (runs[:, 3] < PAGE_SLOTS)).all()
    same = (runs[1:, :2] == runs[:-1, :2]).all(1) & (runs[1:, 2] == runs[:-1, 3])
    assert not same.any(), "two runs that are one"


def test_runs_of_scored_tokens_are_cut_like_lists():
    plan = plan_batch([Request(np.arange(9), np.array([3, 4])), Request(np.arange(9), np.array([5]))])
    assert len(plan.requests) == len(plan.branches) == 2
    assert plan.requests[-1].entry.tolist() == plan.requests[1].entry.tolist() == [2]
    assert [len(branches) for branches in plan.branches] == [0, 0]
    with pytest.raises(IndexError):
        plan.requests[2]
    with pytest.raises(IndexError):
        plan.branches[0][0]


def test_common_prefix():
    assert common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert common_prefix(np.array([], int), np.array([1])) == 0
