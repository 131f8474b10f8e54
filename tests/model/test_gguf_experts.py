"""Experts in GGUF files: each one's matrix out of the tensor of all, in every type, and what other routers say is refused."""

import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from psyfast.errors import ModelError
from psyfast.model.load.gguf_config import traits_from_gguf
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.model.load.tensors import GgufFile
from psyfast.model.traits import ExpertTraits
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from tests.family_models import make_case, transformers_nlls
from tests.gguf_files import write_model, write_tensors
from tests.model.test_families import IDS, OTHER, scored

BLOCKS = "qwen3 moe, normalised, rows of whole blocks"
SIZES = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("experts") / "hf", BLOCKS)


def written(path, folder, **said):
    write_model(path, folder, open_model(locate(str(folder)))[0], **SIZES | said)
    return path


def stored_blocks(kind, shape, seed):
    """Random bytes that are finite values of a type: its scales are halves, whose exponents stay small."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(seed).integers(0, 0x38, (*shape[:-1], shape[-1] // size * num_bytes), np.uint8)
    values = gguf.quants.dequantize(stored, kind).reshape(shape)
    assert np.isfinite(values).all() and len(np.unique(values)) > 20
    return stored, values


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS"])
def test_an_expert_is_its_part_of_the_tensor_of_all(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    gate, down = (stored_blocks(kind, shape, seed) for seed, shape in enumerate([(5, 7, 256), (5, 3, 512)]))
    router = np.ones((5, 256), np.float32)
    path = write_tensors(
        tmp_path / "model.gguf",
        {
            "blk.1.ffn_gate_inp.weight": router,
            "blk.1.ffn_gate_exps.weight": (gate[0], kind),
            "blk.1.ffn_down_exps.weight": (down[0], kind),
        },
    )
    files = GgufFile(path)
    layer = "model.layers.1.mlp."
    assert files.shapes.keys() == {layer + "gate.weight"} | {
        f"{layer}experts.{expert}.{part}_proj.weight" for expert in range(5) for part in ("gate", "down")
    }
    for expert in range(5):
        for part, wanted in (("gate", gate[1]), ("down", down[1])):
            name = f"{layer}experts.{expert}.{part}_proj.weight"
            assert np.array_equal(files.read(name), wanted[expert])
            some = torch.empty(2, wanted.shape[2])
            files.read_into(name, some, first_row=1)
            assert np.array_equal(some, wanted[expert, 1:3])


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0"])
def test_a_quantised_file_scores_as_transformers_does_its_values(tmp_path, folder, kind):
    path = written(tmp_path / "model.gguf", folder, kind=kind)
    files, twin = GgufFile(path), tmp_path / "twin"
    assert files.stored_as()[0] == kind
    shutil.copytree(folder, twin)
    save_file({name: files.read(name) for name in files.shapes}, twin / "model.safetensors", metadata={"format": "pt"})
    for streamed in (False, True):
        for ours, ids in zip(scored(path, "cpu", streamed=streamed), (IDS, OTHER), strict=True):
            wanted = transformers_nlls(twin, "Qwen3MoeForCausalLM", ids.tolist()).numpy()
            assert np.abs(ours - wanted).max() < 1e-4


def said(path, **changes):
    """Traits of a file as written, with some of its keys changed; None takes one out."""
    files = GgufFile(path)
    metadata = {**files.metadata, **{f"qwen3moe.{key}": value for key, value in changes.items()}}
    return traits_from_gguf({k: v for k, v in metadata.items() if v is not None}, files.shapes, "file").experts


def test_what_a_file_does_not_say_is_what_llama_cpp_takes(tmp_path, folder):
    path = written(tmp_path / "model.gguf", folder)
    assert said(path) == ExpertTraits(6, 2, 64, normalised=True)
    assert said(path, expert_weights_norm=False) == ExpertTraits(6, 2, 64, normalised=False)
    assert said(path, expert_feed_forward_length=None) == ExpertTraits(6, 2, 100 // 2, normalised=True)
    assert said(path, expert_gating_func=1, expert_weights_scale=1.0, expert_shared_count=0).num_experts == 6


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"expert_gating_func": 2}, r"qwen3moe\.expert_gating_func = 2 is not supported"),
        ({"expert_weights_scale": 2.5}, r"expert_weights_scale = 2\.5 is not supported"),
        ({"expert_shared_count": 1}, "expert_shared_count = 1 is not supported"),
        ({"expert_group_count": 8}, "expert_group_count = 8 is not supported"),
        ({"expert_count": None}, "'qwen3moe.expert_count' is (missing|null)"),
        ({"expert_used_count": None}, "'qwen3moe.expert_used_count' is missing"),
        ({"expert_used_count": 7}, "7, but there are 6 experts"),
        ({"expert_weights_norm": 1}, "'qwen3moe.expert_weights_norm' is 1, expected true or false"),
    ],
)
def test_a_router_that_is_not_ours_is_refused(tmp_path, folder, changes, match):
    with pytest.raises(ModelError, match=match):
        said(written(tmp_path / "model.gguf", folder), **changes)


OSS = {
    "expert_count": 7,
    "expert_used_count": 3,
    "sliding_window": 35,
    "rope_scaling_type": gguf.RopeScalingType.YARN,
    "rope_scaling_factor": 8.0,
    "rope_scaling_orig_ctx_len": 64,
}


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    folder = make_case(tmp_path_factory.mktemp("gpt_oss") / "hf", "gpt-oss, sinks, windows, yarn")
    write_model(folder / "model.gguf", folder, open_model(locate(str(folder)))[0], **OSS)
    return GgufFile(folder / "model.gguf")


def traits_without(files, key, **changes):
    metadata = files.metadata | {f"gpt-oss.{name.replace('__', '.')}": value for name, value in changes.items()}
    return traits_from_gguf({k: v for k, v in metadata.items() if k != f"gpt-oss.{key}"}, files.shapes, "file")


@pytest.mark.parametrize(
    "key",
    [
        "expert_used_count",
        "attention.sliding_window",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
    ],
)
def test_what_llama_cpp_wants_to_be_told_is_not_taken_from_a_config_json(gpt_oss, key):
    with pytest.raises(ModelError, match=f"'gpt-oss.{key}'"):
        traits_without(gpt_oss, key)


def test_the_rotary_embedding_of_a_file_that_does_not_say_it_is_llama_cpps(gpt_oss):
    assert traits_without(gpt_oss, "rope.freq_base").rope.base == 10_000
    assert traits_without(gpt_oss, "rope.scaling.type").rope.kind == "default"


def test_yarns_ends_are_the_files(gpt_oss):
    rope = traits_without(gpt_oss, "", rope__scaling__yarn_beta_fast=16.0, rope__scaling__yarn_beta_slow=2.0).rope
    assert (rope.kind, rope.beta_fast, rope.beta_slow, rope.truncate) == ("yarn", 16, 2, False)
    with pytest.raises(ModelError, match=r"gpt-oss\.rope\.scaling\.attn_factor = 2\.0 is not supported"):
        traits_without(gpt_oss, "", rope__scaling__attn_factor=2.0)
    assert traits_without(gpt_oss, "", rope__scaling__yarn_attn_factor=1.0).rope.kind == "yarn"


@pytest.mark.parametrize(
    "tensors, match",
    [
        (
            {"blk.0.ffn_up_exps.weight": np.ones((8, 32), np.float32)},
            r"'blk\.0\.ffn_up_exps\.weight' has shape \[8, 32\]",
        ),
        ({"blk.0.ffn_up.3.weight": np.ones((8, 32), np.float32)}, r"'blk\.0\.ffn_up\.3\.weight' belongs to no layer"),
        ({"blk.0.ffn_up_shexp.weight": np.ones((8, 32), np.float32)}, "ffn_up_shexp.weight' belongs to no layer"),
    ],
)
def test_what_are_no_experts_is_refused_by_its_name(tmp_path, tensors, match):
    with pytest.raises(ModelError, match=match):
        GgufFile(write_tensors(tmp_path / "model.gguf", tensors))


def test_an_expert_too_few_is_missing(tmp_path, folder):
    path = written(tmp_path / "model.gguf", folder, expert_count=7)
    with pytest.raises(ModelError, match=r"mlp\.gate\.weight' has shape \[6, 96\], expected \[7, 96\]"):
        load_model(locate(str(path)), resolve("reference", "cpu", Lane.FP32))
