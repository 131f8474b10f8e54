"""Which parts of a layer a tensor belongs to, held against what the assembler makes of every family's tensors."""

from dataclasses import fields, is_dataclass

import pytest
import torch

from psyfast.model.load.assembly import Assembler
from psyfast.model.load.checks import expected_shapes
from psyfast.model.load.config import traits_from_config
from psyfast.model.load.layer_parts import PARTS, CommonParts, parts_of
from psyfast.model.load.names import EMBEDDING, layer_prefix
from psyfast.model.traits import LayerKind, RopeTraits, Traits
from psyfast.ops.records import DeferredMatrix, Lane, LayerWeights, in_memory
from tests.family_cases import CASES, SHAPE

CPU = torch.device("cpu")


class TensorsInMemory:
    """Files whose tensors are zeros, but one, which is ones."""

    def __init__(self, traits, ones=None):
        self.shapes, self.files, self.ones = expected_shapes(traits), (), ones

    def dtype(self, name):
        return torch.float32

    def read(self, name):
        return torch.full(self.shapes[name], float(name == self.ones))

    def read_into(self, name, out, first_row=0):
        out.fill_(float(name == self.ones))


def traits_of_case(name):
    import transformers

    architecture, settings = CASES[name]
    config = getattr(transformers, architecture).config_class
    settings = {**SHAPE, **settings}
    if "text_config" in getattr(config, "sub_configs", {}):
        settings = {"text_config": settings, "tie_word_embeddings": settings.pop("tie_word_embeddings", False)}
    saved = {**config(**settings).to_dict(), "architectures": [architecture]}
    return traits_from_config(saved, "here")


def sums(record):
    """A record as plain values: of a tensor the sum."""
    if isinstance(record, torch.Tensor | DeferredMatrix):
        return float(in_memory(record).sum())
    if isinstance(record, tuple):
        return [sums(one) for one in record]
    if not is_dataclass(record):
        return record
    return {part.name: sums(getattr(record, part.name)) for part in fields(record) if part.name != "rope"}


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_changes_the_parts_that_are_said_to_read_it_and_no_other(case):
    traits = traits_of_case(case)
    layers_of_kind = [traits.kind_of_layer.index(kind) for kind in sorted(set(traits.kind_of_layer))]
    before = Assembler(TensorsInMemory(traits), traits, Lane.FP32, CPU, "here")
    for layer_idx in layers_of_kind:
        prefix = layer_prefix(traits, layer_idx)
        there = before.layer(layer_idx)
        named = [name for name in expected_shapes(traits) if name.startswith(prefix)]
        assert len(named) >= 6
        for name in named:
            changed = Assembler(TensorsInMemory(traits, name), traits, Lane.FP32, CPU, "here").layer(layer_idx)
            differing = {
                part.name
                for part in fields(LayerWeights)
                if sums(getattr(changed, part.name)) != sums(getattr(there, part.name))
            }
            has = {part for part in PARTS if getattr(there, part) is not None}
            said = set(parts_of(name.removeprefix(prefix), traits))
            assert differing and differing <= said | {"attention"}, name
            if name.endswith("input_layernorm.weight") and traits.delta is not None:
                continue  # of layers without a gate, too, it is said that the gate's part reads the norm
            assert differing - {"attention"} == said & has, name


def some_traits(num_layers=3):
    return Traits("x", num_layers, 8, 16, 2, 1, 4, 50, 64, 1e-5, RopeTraits(), kinds=(LayerKind(RopeTraits()),))


def test_what_models_have_in_common():
    q, down = "model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"
    norm = "model.layers.1.post_attention_layernorm.weight"
    common = CommonParts([{q}, set(), {q, down, EMBEDDING}, {norm}], some_traits())
    assert common.copies(0) == {"attn_in": 3, "attn_out": 1, "mlp": 1, "experts": 1, "delta_rule": 1}
    of_mlps = {"attn_in": 1, "attn_out": 1, "mlp": 2, "experts": 2, "delta_rule": 1}
    assert common.copies(1) == common.copies(2) == of_mlps
    assert set(common.shared_parts(0, 0)) == set(PARTS) - {"attn_in"}
    assert set(common.shared_parts(0, 1)) == set(common.shared_parts(2, 0)) == set(PARTS)
    assert set(common.shared_parts(1, 3)) == set(common.shared_parts(2, 2)) == set(PARTS) - {"mlp", "experts"}
    assert [common.owner_of(EMBEDDING, which) for which in range(4)] == [0, 0, 2, 0]
    shapes = {q: (8, 8), down: (8, 16), norm: (8,), "model.layers.1.mlp.up_proj.weight": (16, 8), EMBEDDING: (50, 8)}
    assert common.read_again({**shapes, "model.layers.1.self_attn.q_proj.weight": (8, 8)}) == {
        q,
        down,
        "model.layers.1.mlp.up_proj.weight",
    }


def test_a_part_that_one_model_alone_leaves_as_it_is_belongs_to_nobody_else():
    q = "model.layers.0.self_attn.q_proj.weight"
    common = CommonParts([{q}, set(), {q}], some_traits())
    assert common.copies(0)["attn_in"] == 3
    assert all("attn_in" not in common.shared_parts(0, which) for which in range(3))


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.sink", "model.layers.1.new.weight", "rope_freqs.weight"])
def test_nothing_is_in_common_where_nobody_knows_what_reads_a_tensor(name):
    common = CommonParts([{name}, set(), set()], some_traits())
    assert common.copies(1) == dict.fromkeys(PARTS, 2)
    assert common.copies(0) == dict.fromkeys(PARTS, 2 if name == "rope_freqs.weight" else 1)
