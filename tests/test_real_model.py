"""The real model on synthetic transcripts: lanes against transformers, and a transcript's company does not matter."""

import numpy as np
import pytest
import torch

from psyfast.data.encode import Protocol, encode_many
from psyfast.data.sample import write_sample
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.transcripts import TranscriptReader
from psyfast.engine import Engine
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from psyfast.rows import EntryScores

MODEL = "smollm2-135m-instruct"
NUM_TOKENS = 320


@pytest.fixture(scope="module")
def token_ids(tmp_path_factory):
    """The first tokens of a transcript of each study, and of a second one that shares its instructions."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    tokenizer = Tokenizer(load_tokenizer(MODEL))
    encoded = list(encode_many(TranscriptReader([folder]), tokenizer, Protocol.EXACT))
    return [one.ids[:NUM_TOKENS].astype(np.int64) for one in encoded][::3]


def engine_of(lane):
    operators = resolve("auto", "cpu", lane)
    model = load_model(locate(MODEL), operators)
    return Engine(model.traits, model.weights, operators)


def nlls(engine, sequences, *, share=True):
    plan = plan_batch([Request(ids, np.arange(1, len(ids))) for ids in sequences], share=share)
    entries = EntryScores.of(engine.run(plan.batch), plan.batch.target_N)
    return [entries.token_nlls(tokens) for tokens in plan.requests]


@pytest.fixture(scope="module")
def fp32(token_ids):
    """The engine, and every sequence's NLLs scored alone."""
    engine = engine_of(Lane.FP32)
    return engine, [nlls(engine, [ids])[0] for ids in token_ids]


def transformers_nlls(sequences, model):
    found = []
    for ids in sequences:
        with torch.inference_mode():
            logits = model(torch.from_numpy(ids)[None]).logits[0, :-1]
        logprobs = logits.log_softmax(-1)  # in the model's own type, as the study's script computes it
        found.append(-logprobs.gather(1, torch.from_numpy(ids[1:])[:, None])[:, 0].double().numpy())
    return np.concatenate(found)


def test_both_lanes_err_less_than_transformers_bf16(token_ids, fp32):
    from transformers import AutoModelForCausalLM

    some, path = token_ids[:2], locate(MODEL).path
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
    truth = transformers_nlls(some, model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()  # as when loaded so; model.bfloat16() rounds rotary frequencies, too
    theirs = transformers_nlls(some, model)
    ours = np.concatenate(nlls(engine_of(Lane.BF16), some))
    assert np.abs(np.concatenate(fp32[1][:2]) - truth).max() < 2e-3
    our_error, their_error = np.abs(ours - truth).mean(), np.abs(theirs - truth).mean()
    print(f"\nmean |ΔNLL| to fp32 a token: bf16 lane {our_error:.4f}, transformers bf16 {their_error:.4f} nats")
    assert 0 < our_error < their_error


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [True, False])
def test_a_transcript_scores_the_same_in_any_company(token_ids, fp32, share, threads):
    engine, alone = fp32
    order = np.random.default_rng(threads + 2 * share).permutation(len(token_ids))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = nlls(engine, [token_ids[i] for i in order], share=share)
    finally:
        torch.set_num_threads(before)
    for i, got in zip(order, together, strict=True):
        np.testing.assert_array_equal(got, alone[i])


def test_sharing_happened(token_ids):
    requests = [Request(ids, np.arange(1, len(ids))) for ids in token_ids]
    shared, unshared = plan_batch(requests), plan_batch(requests, share=False)
    assert len(shared.batch.token_ids_T) < len(unshared.batch.token_ids_T) == unshared.num_request_tokens
