"""The native engine's bits: one corpus with each optimisation switched off, in any company, with any number of threads."""

import numpy as np
import pytest
import torch

from psyfast.engine import Engine
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops import cpu
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch
from psyfast.rows import EntryScores
from tests.tiny import make_llama

LANES = list(Lane)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"))


def corpus():
    """Transcripts that share beginnings, options of several tokens at and around borders, and a lone short request."""
    rng = np.random.default_rng(20)
    stem = rng.integers(2, 400, 420)
    branches = tuple(
        Branch(start, rng.integers(2, 400, size), start, start + size)
        for start, size in ((3, 2), (63, 3), (64, 1), (255, 4), (256, 2), (300, 2), (300, 3), (419, 2))
    )
    return [
        Request(stem, np.array([3, 63, 255, 256, 300, 419]), branches),
        Request(np.concatenate([stem[:290], rng.integers(2, 400, 40)]), np.arange(290, 330)),
        Request(np.concatenate([stem[:64], rng.integers(2, 400, 5)]), np.array([66, 68])),
        Request(rng.integers(2, 400, 2), np.array([1])),
    ]


def engine_of(folder, lane, *, sparse=True, backend="cpu", **settings):
    operators = resolve(backend, "cpu", lane, **settings)
    model = load_model(locate(str(folder)), operators)
    return Engine(model.traits, model.weights, operators, sparse=sparse)


def scores_of(engine, requests, **options):
    """Each request's NLLs and those of its branches, in one array a request."""
    plan = plan_batch(requests, **options)
    entries = EntryScores.of(engine.run(plan.batch), plan.batch.target_N)
    return [
        np.concatenate([entries.token_nlls(tokens), *(entries.token_nlls(branch) for branch in branches)])
        for tokens, branches in zip(plan.requests, plan.branches, strict=True)
    ]


def assert_same_bits(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("off", ["share", "sparse", "join_segments", "packing"])
def test_an_optimisation_switched_off_changes_no_bit(folder, off, lane):
    requests = corpus()
    wanted = scores_of(engine_of(folder, lane), requests)
    if off == "share":
        got = scores_of(engine_of(folder, lane), requests, share=False)
    elif off == "packing":
        engine = engine_of(folder, lane)
        got = [scores_of(engine, [request])[0] for request in requests]
    else:
        got = scores_of(engine_of(folder, lane, **{off: False}), requests)
    assert_same_bits(got, wanted)


@pytest.mark.parametrize("lane", LANES)
def test_order_changes_no_bit(folder, lane):
    requests, engine = corpus(), engine_of(folder, lane)
    assert_same_bits(scores_of(engine, requests[::-1])[::-1], scores_of(engine, requests))


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
def test_threads_change_no_bit(folder, num_threads, lane):
    requests, engine = corpus(), engine_of(folder, lane)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = scores_of(engine, requests)
        torch.set_num_threads(num_threads)
        assert_same_bits(scores_of(engine, requests), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", cpu.available_isas())
def test_every_level_and_the_reference_agree(folder, isa):
    requests = corpus()
    wanted = scores_of(engine_of(folder, Lane.FP32, backend="reference"), requests)
    for got, expected in zip(scores_of(engine_of(folder, Lane.FP32, isa=isa), requests), wanted, strict=True):
        assert np.abs(got - expected).max() < 2e-5  # both round: NLLs of 9 nats in fp32, 3 layers


def test_another_request_has_other_bits(folder):
    """The comparisons above can fail."""
    requests, engine = corpus(), engine_of(folder, Lane.FP32)
    changed = Request(
        np.concatenate([[(requests[1].ids[0] + 1) % 400], requests[1].ids[1:]]), requests[1].scored_positions
    )
    assert not np.array_equal(scores_of(engine, [changed])[0], scores_of(engine, requests[1:2])[0])
