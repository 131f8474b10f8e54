"""Weights that wait in host memory for a GPU: the resident ones' bits, and a plan of the GPU's memory."""

from dataclasses import replace

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
from tests.ops.plain_kernels import PlainKernels
from tests.test_bits import assert_same_bits, corpus, scores_of
from tests.tiny import make_llama

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("lane", list(Lane))
def test_the_bits_are_those_of_resident_weights(tmp_path, lane):
    located = locate(str(make_llama(tmp_path)))
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
