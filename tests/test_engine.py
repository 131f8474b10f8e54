"""The engine on tiny random Llamas: against transformers, and the same whatever is batched with what."""

import numpy as np
import pytest
import torch

from psyfast.engine import Engine, model_shape
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Branch, Request, plan_batch
from psyfast.rows import EntryScores
from tests.tiny import make_llama, transformers_logprobs

SHAPES = {
    "grouped heads": {},
    "one kv head": {"num_key_value_heads": 1},
    "no grouping, tied": {"num_key_value_heads": 6, "tie_word_embeddings": True},
    "head dimension of its own, biases": {"head_dim": 16, "attention_bias": True},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def engine_of(folder, lane=Lane.FP32, backend="auto"):
    operators = resolve(backend, "cpu", lane)
    model = load_model(locate(str(folder)), operators)
    return Engine(model.traits, model.weights, operators)


def nlls(engine, requests, **options):
    plan = plan_batch(requests, **options)
    entries = EntryScores.of(engine.run(plan.batch), plan.batch.target_N)
    scored = [entries.token_nlls(tokens) for tokens in plan.requests]
    return scored, [[entries.token_nlls(tokens) for tokens in branches] for branches in plan.branches]


def whole(ids):
    """Every token but the first scored."""
    return Request(np.array(ids), np.arange(1, len(ids)))


def random_ids(rng, num, longest=300):
    stem = rng.integers(2, 400, longest)
    ids = [
        np.concatenate([stem[: rng.integers(0, 200)], rng.integers(2, 400, rng.integers(2, 90))]) for _ in range(num)
    ]
    return [stem, *ids]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_rows_are_transformers_fp32(tmp_path, shape, backend):
    folder = make_llama(tmp_path, **SHAPES[shape])
    ids = np.random.default_rng(0).integers(2, 400, 333).tolist()
    (got,), _ = nlls(engine_of(folder, backend=backend), [whole(ids)])
    assert np.abs(got + transformers_logprobs(folder, ids).numpy()).max() < 1e-4


def test_bf16_weights_are_exact_in_the_fp32_lane(tmp_path):
    folder = make_llama(tmp_path, dtype=torch.bfloat16)
    ids = np.random.default_rng(1).integers(2, 400, 200).tolist()
    (got,), _ = nlls(engine_of(folder), [whole(ids)])
    assert np.abs(got + transformers_logprobs(folder, ids).numpy()).max() < 1e-4


def test_the_bf16_lane_errs_less_than_transformers_bf16(tmp_path):
    folder = make_llama(tmp_path, hidden_size=192, intermediate_size=512, num_hidden_layers=6)
    ids = np.random.default_rng(2).integers(2, 400, 500).tolist()
    truth = -transformers_logprobs(folder, ids).numpy()
    theirs = -transformers_logprobs(folder, ids, torch.bfloat16).numpy()
    (got,), _ = nlls(engine_of(folder, Lane.BF16), [whole(ids)])
    ours, others = np.abs(got - truth).mean(), np.abs(theirs - truth).mean()
    assert 0 < ours < others


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [True, False])
def test_a_sequence_scores_the_same_in_any_company(tmp_path, share, threads):
    engine = engine_of(make_llama(tmp_path))
    rng = np.random.default_rng(5)
    sequences = random_ids(rng, 12)
    alone = [nlls(engine, [whole(ids)])[0][0] for ids in sequences]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            order = rng.permutation(len(sequences))
            together, _ = nlls(engine, [whole(sequences[i]) for i in order], share=share)
            for i, got in zip(order, together, strict=True):
                assert np.abs(got - alone[i]).max() < 1e-5
    finally:
        torch.set_num_threads(before)


def test_another_past_gives_another_score(tmp_path):
    """The invariance above is no constant function: one token changed early moves what follows."""
    engine = engine_of(make_llama(tmp_path))
    ids = np.random.default_rng(6).integers(2, 400, 100)
    changed = ids.copy()
    changed[3] = (changed[3] + 1) % 400
    one, other = nlls(engine, [whole(ids), whole(changed)])[0]
    assert np.abs(one[10:] - other[10:]).max() > 1e-3


@pytest.mark.parametrize("share", [True, False])
def test_branches_score_as_sequences_of_their_own(tmp_path, share):
    engine = engine_of(make_llama(tmp_path))
    rng = np.random.default_rng(7)
    ids = rng.integers(2, 400, 260)
    branches = []
    for start in (5, 63, 64, 65, 128, 200, 200, 200):
        tail = rng.integers(2, 400, rng.integers(1, 5))
        branches.append(Branch(start, tail, start, start + len(tail)))
    trunk = Request(ids, np.array([5, 64, 200, 259]), tuple(branches))
    (scored,), (branch_nlls,) = (
        nlls(engine, [trunk, whole(ids[:100])], share=share)[0][:1],
        nlls(engine, [trunk], share=share)[1],
    )
    wanted = nlls(engine, [whole(ids)])[0][0]
    assert np.abs(scored - wanted[trunk.scored_positions - 1]).max() < 1e-5
    for branch, got in zip(branches, branch_nlls, strict=True):
        full = np.concatenate([ids[: branch.start], branch.ids])
        assert np.abs(got - nlls(engine, [whole(full)])[0][0][branch.start - 1 :]).max() < 1e-5


def test_only_what_is_needed_is_computed(tmp_path):
    plan = plan_batch([Request(np.arange(2, 300), np.array([10, 20]))])
    assert len(plan.batch.token_ids_T) == 20
    assert plan.batch.rows_N.tolist() == [9, 19]


def test_arg_max_rank_and_entropy_of_each_row(tmp_path):
    folder = make_llama(tmp_path)
    engine = engine_of(folder)
    ids = np.random.default_rng(8).integers(2, 400, 50)
    plan = plan_batch([whole(ids)])
    scores = engine.run(plan.batch)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs = model(torch.tensor(ids)[None]).logits[0, :-1].double().log_softmax(-1)
    assert torch.equal(scores.argmax_N, logprobs.argmax(-1))
    target = logprobs.gather(1, torch.tensor(ids[1:])[:, None])
    assert torch.equal(scores.rank_N, (logprobs > target).sum(-1))
    assert (scores.entropy_N + (logprobs.exp() * logprobs).sum(-1)).abs().max() < 1e-4


def test_an_empty_batch_scores_nothing(tmp_path):
    scores = engine_of(make_llama(tmp_path)).run(plan_batch([]).batch)
    assert scores.nll_N.shape == (0,)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_weights_that_are_counted_are_those_of_the_matrices(tmp_path, changes):
    traits = engine_of(make_llama(tmp_path / "tiny", **changes), backend="reference").traits
    shape = model_shape(traits)
    assert shape.layer_params == traits.num_layer_params
    assert (shape.windows, shape.vocab_size) == ((None,) * traits.num_layers, traits.vocab_size)
