"""Log-likelihoods of (context, continuation) pairs."""

import numpy as np
import pytest

import psyfast
from psyfast.errors import PsyfastError, UsageError
from tests.tiny import make_llama, transformers_logprobs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def scorer(folder):
    with psyfast.Scorer(str(folder), lane="fp32") as scorer:
        yield scorer


def id_pairs(count=30, seed=0):
    """Pairs that share beginnings with one another, in no order, some of them twice."""
    rng = np.random.default_rng(seed)
    stem = rng.integers(2, 400, 120)
    pairs = [
        (stem[: rng.integers(1, 120)].tolist(), rng.integers(2, 400, rng.integers(1, 5)).tolist()) for _ in range(count)
    ]
    return [*pairs, pairs[3], pairs[0]]


def test_ids_agree_with_transformers(scorer, folder):
    for (context, continuation), got in zip(id_pairs(6), scorer.loglikelihoods(id_pairs(6)), strict=False):
        wanted = transformers_logprobs(folder, context + continuation)[len(context) - 1 :].numpy()
        np.testing.assert_allclose(got.token_logprobs, wanted, atol=1e-4)
        assert got.total == pytest.approx(wanted.sum(), abs=4e-4)
        assert got.token_ids.tolist() == continuation


def test_a_pair_has_its_own_bits(folder):
    pairs = id_pairs()
    with psyfast.Scorer(str(folder)) as scorer:
        together = scorer.loglikelihoods(pairs)
        backwards = scorer.loglikelihoods(pairs[::-1])[::-1]
        alone = [scorer.loglikelihoods([pair])[0] for pair in pairs]
    with psyfast.Scorer(str(folder), share=False, threads=1, window_slots=64) as scorer:
        unshared = scorer.loglikelihoods(pairs)
    for results in zip(together, backwards, alone, unshared, strict=True):
        assert len({result.token_logprobs.tobytes() for result in results}) == 1
        assert len({result.is_greedy for result in results}) == 1


def test_is_greedy_means_each_first_choice(scorer):
    context = [5, 9, 13]
    ranked = [scorer.loglikelihoods([(context, [token])])[0] for token in range(400)]
    best = max(range(400), key=lambda token: ranked[token].total)
    assert [token for token in range(400) if ranked[token].is_greedy] == [best]
    second = [(context, [best, token]) for token in range(400)]
    assert sum(result.is_greedy for result in scorer.loglikelihoods(second)) == 1
    other = (best + 1) % 400
    assert not any(
        result.is_greedy for result in scorer.loglikelihoods([(context, [other, token]) for token in range(400)])
    )


def test_texts_are_tokenised_together(scorer):
    pairs = [("You press <<", "A>>. You win"), ("You choose between two ", "slot machines")]
    for (context, continuation), got in zip(pairs, scorer.loglikelihoods(pairs), strict=True):
        encoding = scorer.tokenizer.encode(context + continuation)
        start, stop = encoding.overlapping(len(context), len(context + continuation))
        ids = encoding.ids.tolist()
        (wanted,) = scorer.loglikelihoods([(ids[:start], ids[start:stop])])
        assert got.token_logprobs.tobytes() == wanted.token_logprobs.tobytes()
        assert got.token_ids.tolist() == ids[start:stop]


def test_no_pairs_no_results(scorer):
    assert scorer.loglikelihoods([]) == []


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (([5], []), "continuation is empty"),
        (([], [5]), "context is empty"),
        (("a", [5]), "one side is a text"),
        (([5], [400]), "holds the id 400"),
        (([-1], [4]), "holds the id -1"),
        (([0.5], [4]), "expected a text or a list of token ids"),
        (([[5]], [4]), "expected a text or a list of token ids"),
        (([5], [4], [3]), "expected (context, continuation)"),
        ("ab", "expected (context, continuation)"),
        (([5] * 600, [4]), "the limit is 512"),
    ],
)
def test_a_pair_that_cannot_be_scored_is_named(scorer, pair, words):
    with pytest.raises(UsageError) as caught:
        scorer.loglikelihoods([([5], [6]), pair])
    assert "pair 1" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("settings", "words"), [({"thread": 2}, "thread"), ({"lane": "fp64"}, "lane is 'fp64'")])
def test_bad_settings_are_refused(folder, settings, words):
    with pytest.raises(PsyfastError, match=words):
        psyfast.Scorer(str(folder), **settings)


def test_streamed_weights_give_the_same_bits(folder, scorer):
    with psyfast.Scorer(str(folder), lane="fp32", weights="streamed") as streamed:
        for got, wanted in zip(streamed.loglikelihoods(id_pairs()), scorer.loglikelihoods(id_pairs()), strict=True):
            assert got.token_logprobs.tobytes() == wanted.token_logprobs.tobytes()
