"""Every family on random models: what transformers says of each row, on each backend, shared or not, resident or streamed."""

import json

import numpy as np
import pytest
import torch
from gguf import RopeScalingType

from psyfast.config import ScoreConfig
from psyfast.engine import Engine, model_shape
from psyfast.inputs import find_inputs
from psyfast.model.families import FAMILIES
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from psyfast.rows import EntryScores
from psyfast.scoring import score_run
from psyfast.store.reading import responses_dataset
from tests.family_cases import CASES
from tests.family_models import make_case, transformers_nlls
from tests.gguf_files import write_model
from tests.test_bits import assert_same_bits, corpus, engine_of, scores_of
from tests.tiny import TEXTS

IDS = np.random.default_rng(0).integers(2, 400, 300)
OTHER = np.concatenate([IDS[:150], np.random.default_rng(1).integers(2, 400, 60)])
"""The second forks off the first inside a page; both are longer than any window and any original rope length."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a case and transformers' rows of both texts, made when they are first asked for."""
    made = {}

    def model(case):
        if case not in made:
            folder = make_case(tmp_path_factory.mktemp("family") / "model", case)
            architecture = CASES[case][0]
            made[case] = folder, [transformers_nlls(folder, architecture, ids.tolist()).numpy() for ids in (IDS, OTHER)]
        return made[case]

    return model


def scored(folder, backend, *, streamed=False, lane=Lane.FP32, share=True):
    """Every row of both texts."""
    operators = resolve(backend, "cpu", lane)
    model = load_model(locate(str(folder)), operators, streamed=streamed)
    engine = Engine(model.traits, model.weights, operators)
    plan = plan_batch([Request(ids, np.arange(1, len(ids))) for ids in (IDS, OTHER)], share=share)
    entries = EntryScores.of(engine.run(plan.batch), plan.batch.target_N)
    model.weights.close()
    return [entries.token_nlls(tokens) for tokens in plan.requests]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_every_row_is_transformers_fp32(models, case, backend):
    folder, wanted = models(case)
    for share in (True, False):
        for streamed in (True, False):
            got = scored(folder, backend, share=share, streamed=streamed)
            for ours, theirs in zip(got, wanted, strict=True):
                assert np.abs(ours - theirs).max() < 1e-4, (share, streamed)


BITS = (
    "qwen3 moe, heads of 80, shares of all",
    "qwen3 moe, tied, MLPs between, yarn, biases",
    "mixtral, windows, heads of 80",
    "gpt-oss, sinks, windows, yarn",
    "qwen2, windows, yarn",
    "mistral, windows, heads of 80",
    "olmo3, heads of 80, yarn on full layers",
    "olmo3, tied, grouped heads of 96, biases",
    "gemma2, soft caps, heads of 80",
    "gemma3, two bases, heads of 80",
    "qwen3.5, odd heads, partial rotary",
    "qwen3.5, tied, delta rule last, wide filter",
)


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("case", BITS)
def test_company_and_threads_change_no_bit(models, case, lane):
    engine, requests = engine_of(models(case)[0], lane), corpus()
    wanted = scores_of(engine, requests)
    assert_same_bits(scores_of(engine, requests, share=False), wanted)
    assert_same_bits([scores_of(engine, [request])[0] for request in requests], wanted)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same_bits(scores_of(engine, requests[::-1])[::-1], wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", BITS)
def test_the_bf16_lane_errs_little(models, case):
    folder, wanted = models(case)
    got = scored(folder, "cpu", lane=Lane.BF16)
    error = np.concatenate([np.abs(ours - theirs) for ours, theirs in zip(got, wanted, strict=True)])
    assert 0 < error.mean() < 0.1


def test_windows_count_in_what_is_required(models):
    traits = open_model(locate(str(models("gemma3, heads of 96 as scaled")[0])))[0]
    assert model_shape(traits).windows == (39,) * 5 + (None,)


def test_a_family_scores_a_file_of_transcripts(models, tmp_path):
    """From text to rows, with the traits in the manifest."""
    folder, _ = models("gemma3, two bases, heads of 80")
    data = tmp_path / "data.jsonl"
    lines = [{"text": text, "experiment": "e/1.csv", "participant": str(i)} for i, text in enumerate(TEXTS * 4)]
    data.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    run = score_run(find_inputs(ScoreConfig((str(folder),), (str(data),), lane="fp32"), tmp_path / "run"))
    assert responses_dataset(run).count_rows() == 12
    (model,) = json.loads(run.manifest_path.read_text())["models"].values()
    traits = model["traits"]
    assert traits["kinds"][1]["window"] is None and traits["kind_of_layer"] == [0, 0, 0, 0, 0, 1, 0]


def test_every_family_has_two_cases():
    made = [architecture for architecture, _ in CASES.values()]
    for family in FAMILIES:
        assert made.count(family.architecture) >= 2, family.architecture


GGUF_CASES = {
    "qwen2, tied, heads of 80": {},
    "qwen3, tied, heads of 80": {},
    "smollm3, tied, heads of 80": {},
    "gemma2, heads of 96 as scaled": {
        "sliding_window": 39,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3, heads of 96 as scaled": {
        "sliding_window": 39,
        "rope_scaling_type": RopeScalingType.LINEAR,
        "rope_scaling_factor": 4.0,
    },
    "qwen3.5, odd heads, partial rotary": {
        "ssm_conv_kernel": 4,
        "ssm_state_size": 24,
        "ssm_group_count": 3,
        "ssm_time_step_rank": 6,
        "ssm_inner_size": 240,
        "rope_dimension_count": 20,
        "full_attention_interval": 4,
        "num_ahead": 1,
    },
    "qwen3 moe, normalised, rows of whole blocks": {
        "expert_count": 6,
        "expert_used_count": 2,
        "expert_feed_forward_length": 64,
    },
    "qwen3 moe, heads of 80, shares of all": {
        "expert_count": 9,
        "expert_used_count": 3,
        "expert_feed_forward_length": 44,
        "expert_weights_norm": False,
    },
    "mixtral, tied, one expert a token": {
        "expert_count": 3,
        "expert_used_count": 1,
        "rope_scaling_type": RopeScalingType.LINEAR,
        "rope_scaling_factor": 4.0,
    },
    "gpt-oss, sinks, windows, yarn": {
        "expert_count": 7,
        "expert_used_count": 3,
        "expert_feed_forward_length": 100,
        "sliding_window": 35,
        "rope_scaling_type": RopeScalingType.YARN,
        "rope_scaling_factor": 8.0,
        "rope_scaling_orig_ctx_len": 64,
    },
    "olmoe, norms over all heads": {"expert_count": 12, "expert_used_count": 4},
}
"""Cases, and what their files say beyond what every file does."""


@pytest.mark.parametrize("case", GGUF_CASES)
def test_a_gguf_file_scores_as_its_folder(models, tmp_path, case):
    folder, wanted = models(case)
    write_model(tmp_path / "model.gguf", folder, open_model(locate(str(folder)))[0], **GGUF_CASES[case])
    for ours, theirs in zip(scored(tmp_path / "model.gguf", "cpu"), wanted, strict=True):
        assert np.abs(ours - theirs).max() < 1e-4
