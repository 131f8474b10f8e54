"""Weights that wait in host memory for a GPU: the resident ones' bits, and a plan of the GPU's memory."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from psyfast.config import ScoreConfig
from psyfast.engine import Engine
from psyfast.errors import UsageError
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.in_step import ModelsInStep
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.model.load.pinned import load_pinned
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.records import Lane
from psyfast.process_memory import planned_memory
from tests.family_models import make_case
from tests.ops.plain_kernels import PlainKernels
from tests.test_bits import assert_same_bits, corpus, scores_of
from tests.tiny import make_llama

CPU, GPU = torch.device("cpu"), torch.device("cuda")


EXPERTS = "qwen3 moe, tied, MLPs between, yarn, biases"
"""Layers of two sizes: some have 70 experts, others an MLP."""


@pytest.mark.parametrize("make", [make_llama, partial(make_case, case=EXPERTS)], ids=["llama", "experts"])
@pytest.mark.parametrize("lane", list(Lane))
def test_the_bits_are_those_of_resident_weights(tmp_path, lane, make):
    located = locate(str(make(tmp_path)))
    operators = operators_over(PlainKernels(), lane, CPU)
    traits, files = open_model(located)
    assembler = Assembler(files, traits, lane, CPU, "file")
    models = ModelsInStep([assembler], CommonParts([()], traits), operators.prepare_layer)
    (weights,) = load_pinned(models, models, CPU)
    resident = load_model(located, operators)
    for _ in range(2):  # the second batch begins with layer 0 after the last one
        got = scores_of(Engine(traits, weights, operators), corpus())
        assert_same_bits(got, scores_of(Engine(traits, resident.weights, operators), corpus()))
    ropes = {id(weights.layer(idx).attn_in.rope) for idx in range(traits.num_layers)}
    assert len(ropes) == 1
    weights.close()


@pytest.mark.parametrize("lane", list(Lane))
def test_experts_wait_in_one_block_with_their_layer(tmp_path, lane):
    """Router, gate and up, and down: three tensors of all experts, copied with the others of their layer."""
    located = locate(str(make_case(tmp_path, EXPERTS)))
    operators = operators_over(PlainKernels(), lane, CPU)
    traits, files = open_model(located)
    assembler = Assembler(files, traits, lane, CPU, "file")
    models = ModelsInStep([assembler], CommonParts([()], traits), operators.prepare_layer)
    (weights,) = load_pinned(models, models, CPU)
    experts = weights.layer(1).experts
    D, F, X = 72, 33, 70
    assert weights.layer(0).experts is None and weights.layer(0).mlp is not None
    shapes = [tuple(part.shape) for part in (experts.router_XD, experts.gate_up_proj, experts.down_proj)]
    assert shapes == [(X, D), (X, 2 * F, D), (X, D, F)]
    assert torch.equal(experts.gate_up_proj[69, F:].float(), rounded(files, "experts.69.up_proj", lane))
    assert torch.equal(experts.down_proj[3].float(), rounded(files, "experts.3.down_proj", lane))
    weights.close()


def rounded(files, name, lane):
    values = files.read(f"model.layers.1.mlp.{name}.weight")
    return values if lane is Lane.FP32 else values.bfloat16().float()


def planned(folder, monkeypatch, free_bytes, **settings):
    """The plan for a GPU with so much free memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 80_000_000_000))
    operators = replace(operators_over(PlainKernels(), Lane.BF16, CPU), device=GPU)
    config = ScoreConfig(models=("m",), sources=("d",), **settings)
    return planned_memory(config, operators, *open_model(locate(str(folder))))


def test_the_plan_is_of_the_gpus_memory(tmp_path, monkeypatch):
    folder = make_llama(tmp_path, hidden_size=192, intermediate_size=512, num_hidden_layers=8)
    roomy = planned(folder, monkeypatch, 40_000_000_000)
    assert (roomy.weights, roomy.limit_bytes, roomy.bytes_of["process"]) == ("resident", 36_000_000_000, 48_000_000)
    assert roomy.bytes_of["layers"] == 2 * 8 * (192 * (2 * 6 + 2 * 2) * 32 + 3 * 192 * 512)
    asked = planned(folder, monkeypatch, 40_000_000_000, weights="streamed")
    assert asked.weights == "streamed" and asked.bytes_of["layers"] == roomy.bytes_of["layers"] // 4
    assert planned(folder, monkeypatch, 40_000_000_000, memory_limit="3GB").limit_bytes == 3_000_000_000
    with pytest.raises(UsageError, match="of memory cannot hold it"):
        planned(folder, monkeypatch, 1_000_000_000)


def test_a_gpus_memory_holds_all_experts_of_a_layer(tmp_path, monkeypatch):
    roomy = planned(make_case(tmp_path, EXPERTS), monkeypatch, 40_000_000_000)
    of_layer = 72 * (2 * 6 + 2 * 2) * 12 + 70 * (72 + 3 * 72 * 33)
    assert roomy.bytes_of["layers"] == 2 * 6 * of_layer
