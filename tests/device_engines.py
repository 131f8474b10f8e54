"""Whole engines over device kernels, and what their scores are held to: the reference in fp32, and its own bf16 error."""

import numpy as np
import torch

from psyfast.engine import Engine
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request
from tests.test_bits import scores_of

CPU = torch.device("cpu")
CASES = ("gemma2, soft caps, heads of 80", "qwen3, biases, windows, yarn")
"""Of tests.family_cases: windows, both soft caps, norms around, unit offsets; norms of q and k, biases, yarn."""
EXPERTS = "qwen3 moe, normalised, rows of whole blocks"
HEADS = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
"""Of a tiny Llama whose head size the kernels have."""


def engine_over(folder, kernels, lane, *, sparse=True):
    """An engine whose operators run on these kernels, on the CPU."""
    return engine_of(folder, operators_over(kernels, lane, CPU), sparse=sparse)


def engine_of(folder, operators, *, sparse=True):
    model = load_model(locate(str(folder)), operators)
    return Engine(model.traits, model.weights, operators, sparse=sparse)


def reference_scores(folder, requests, lane=Lane.FP32):
    return np.concatenate(scores_of(engine_of(folder, resolve("reference", "cpu", lane)), requests))


def assert_as_reference(got, folder, requests, lane):
    """Within 1e-4 nats in fp32; in bf16 not further from fp32 than twice the reference's own bf16 lane."""
    got, truth = np.concatenate(got), reference_scores(folder, requests)
    error = np.abs(got - truth)
    if lane is Lane.FP32:
        assert error.max() < 1e-4
        return
    allowed = np.abs(reference_scores(folder, requests, Lane.BF16) - truth)
    assert 0 < error.mean() <= 2 * allowed.mean()
    assert error.max() <= 2 * allowed.max()


def small_corpus():
    """A transcript over a page's border with options, another that begins alike, and a lone short one."""
    rng = np.random.default_rng(20)
    stem = rng.integers(2, 400, 90)
    branches = tuple(
        Branch(start, rng.integers(2, 400, size), start, start + size) for start, size in ((3, 2), (63, 3), (64, 2))
    )
    return [
        Request(stem, np.arange(1, 90), branches),
        Request(np.concatenate([stem[:70], rng.integers(2, 400, 9)]), np.arange(70, 79)),
        Request(rng.integers(2, 400, 2), np.array([1])),
    ]


def check_engine(folder, kernels):
    """Both lanes, with prefixes shared and not, against the reference."""
    for lane in Lane:
        engine = engine_over(folder, kernels, lane)
        assert_as_reference(scores_of(engine, small_corpus()), folder, small_corpus(), lane)
    assert_as_reference(scores_of(engine, small_corpus(), share=False), folder, small_corpus(), lane)


def real_requests(shared_dir, folder, num_tokens):
    """The first real transcript that has three response tokens among its first tokens, cut there; all are scored."""
    from psyfast.data.encode import encode
    from psyfast.data.encoded import Protocol
    from psyfast.data.tokenizer import Tokenizer
    from psyfast.data.transcripts import ReadOptions, TranscriptReader
    from psyfast.model.load.tokenizer import load_tokenizer
    from psyfast.rows import request_of

    tokenizer = Tokenizer(load_tokenizer(str(folder)))
    for transcript in TranscriptReader((str(shared_dir / "data" / "psych201"),), ReadOptions()):
        request = request_of(encode(transcript, tokenizer, Protocol("exact")))
        if (request.scored_positions < num_tokens).sum() >= 3:
            return [Request(request.ids[:num_tokens], np.arange(1, num_tokens))]
    raise AssertionError("no transcript begins with responses")


def check_real_transcript(shared_dir, folder, kernels, num_tokens):
    """NLLs of a real transcript's tokens within the bf16 bound of the reference."""
    requests = real_requests(shared_dir, folder, num_tokens)
    for lane in Lane:
        got = scores_of(engine_over(folder, kernels, lane), requests)
        assert_as_reference(got, folder, requests, lane)
