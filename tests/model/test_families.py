"""Every family on random models: what transformers says of each row, on each backend, shared or not, resident or streamed."""

import numpy as np
import pytest
from gguf import RopeScalingType

from psyfast.engine import Engine
from psyfast.model.families import FAMILIES
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from psyfast.rows import EntryScores
from tests.family_cases import CASES, make_case, transformers_nlls
from tests.gguf_files import write_model

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


def test_every_family_has_two_cases():
    made = [architecture for architecture, _ in CASES.values()]
    for family in FAMILIES:
        assert family.architecture == "LlamaForCausalLM" or made.count(family.architecture) >= 2, family.architecture


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
}
"""Cases, and what their files say beyond what every file does."""


@pytest.mark.parametrize("case", GGUF_CASES)
def test_a_gguf_file_scores_as_its_folder(models, tmp_path, case):
    folder, wanted = models(case)
    write_model(tmp_path / "model.gguf", folder, open_model(locate(str(folder)))[0], **GGUF_CASES[case])
    for ours, theirs in zip(scored(tmp_path / "model.gguf", "cpu"), wanted, strict=True):
        assert np.abs(ours - theirs).max() < 1e-4
