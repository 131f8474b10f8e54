"""Loading: what transformers loads loads here with the same values, and what does not fit is refused by name."""

import json
from dataclasses import replace

import pytest
import torch

from psyfast.config import ScoreConfig
from psyfast.errors import ModelError
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.config import traits_from_config
from psyfast.model.load.config_file import context_length, read_config
from psyfast.model.load.gguf_config import traits_from_gguf
from psyfast.model.load.in_step import ModelsInStep
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.model.load.tensors import GgufFile, SafetensorsFiles, unpermute
from psyfast.model.load.weights import load_resident
from psyfast.model.traits import RopeTraits
from psyfast.ops.records import Lane, PreparedLayer, in_memory
from psyfast.ops.registry import resolve
from psyfast.process_memory import planned_memory
from tests.gguf_files import write_model
from tests.tiny import make_llama

CPU = torch.device("cpu")


def edited(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def load(folder, lane=Lane.FP32):
    traits = traits_from_config(read_config(folder), str(folder))
    return traits, resident(SafetensorsFiles(folder), traits, lane, str(folder))


def resident(files, traits, lane=Lane.FP32, where="file"):
    assembler = Assembler(files, traits, lane, CPU, where)
    (weights,) = load_resident(ModelsInStep([assembler], CommonParts([()], traits), PreparedLayer.as_loaded))
    return weights


def test_a_sharded_model_equals_the_same_model_in_one_file(tmp_path):
    _, one = load(make_llama(tmp_path / "one"))
    _, sharded = load(make_llama(tmp_path / "sharded", shard="60KB"))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert torch.equal(*(weights.embed(torch.arange(400)) for weights in (one, sharded)))
    for a, b in zip(one.layers, sharded.layers, strict=True):
        assert torch.equal(a.attn_in.qkv_proj, b.attn_in.qkv_proj) and torch.equal(a.mlp.down_proj, b.mlp.down_proj)


@pytest.mark.parametrize(
    ("stored", "lane", "kept"),
    [
        (torch.float32, Lane.FP32, torch.float32),
        (torch.bfloat16, Lane.FP32, torch.bfloat16),
        (torch.float16, Lane.FP32, torch.float32),
        (torch.float32, Lane.BF16, torch.bfloat16),
    ],
)
def test_matrices_are_kept_exactly_in_fp32_and_rounded_in_bf16(tmp_path, stored, lane, kept):
    _, weights = load(make_llama(tmp_path, dtype=stored), lane)
    assert weights.layers[0].mlp.down_proj.dtype == kept
    original = SafetensorsFiles(tmp_path).read("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(weights.layers[0].mlp.down_proj, original.to(kept))


@pytest.mark.parametrize("damage", ["missing", "left-over", "misshapen"])
def test_a_tensor_that_does_not_fit_is_named(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    path = make_llama(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "left-over":
        name = "model.layers.9.mlp.up_proj.weight"
        tensors[name] = torch.zeros(2, 2)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path)
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(tmp_path)


def test_of_many_tensors_that_are_left_over_one_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_llama(tmp_path) / "model.safetensors"
    save_file(load_file(path) | {f"extra.{i}": torch.zeros(2) for i in range(3)}, path)
    with pytest.raises(
        ModelError, match=r"tensor 'extra\.0' is none of LlamaForCausalLM's, nor are 2 more; the file is"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"architectures": ["MyModel"], "auto_map": {"AutoModel": "x"}}, "remote code is never run"),
        ({"hidden_act": "relu6"}, "relu6"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"num_hidden_layers": ...}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_key_value_heads": 4}, "cannot be shared"),
    ],
)
def test_configurations_that_cannot_be_honoured_are_refused(tmp_path, changes, message):
    edited(make_llama(tmp_path), **changes)
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_a_folder_without_weights_says_what_to_do(tmp_path):
    make_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickle"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a tensor file at all", b"\xff" * 64])
def test_broken_weight_files_are_named(tmp_path, content):
    (make_llama(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="safetensors"):
        load(tmp_path)
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.gguf"):
        GgufFile(tmp_path / "x.gguf")


def test_a_missing_shard_is_named(tmp_path):
    make_llama(tmp_path, shard="60KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match="model-00002"):
        load(tmp_path)


@pytest.mark.parametrize("said", ['{"weight_map": {"a": 1}}', '{"weight_map": [1]}', "[" * 100_000])
def test_an_index_that_names_no_files_is_named(tmp_path, said):
    make_llama(tmp_path, shard="60KB")
    (tmp_path / "model.safetensors.index.json").write_text(said)
    with pytest.raises(ModelError, match=r"index\.json: has no readable 'weight_map'"):
        load(tmp_path)


@pytest.mark.parametrize("said", ["[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"], ids=["deep", "long"])
def test_json_that_python_does_not_read_is_named(tmp_path, said):
    (make_llama(tmp_path) / "config.json").write_text(said)
    with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON"):
        load(tmp_path)


def test_a_folder_without_a_text_body_is_refused_before_anything_is_planned(tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_llama(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, path)
    config = ScoreConfig((str(tmp_path),), ("data.jsonl",))
    with pytest.raises(ModelError, match=r"'model\.embed_tokens\.weight' .* is missing"):
        planned_memory(config, resolve("reference", "cpu", Lane.FP32), *open_model(locate(str(tmp_path))))


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ],
)
def test_rotary_frequencies_are_those_of_transformers(scaling, spelling):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 1024, "vocab_size": 8}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**shape, rope_parameters={**scaling, "rope_theta": 5e5})).inv_freq
    config = {
        **shape,
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "rope_theta": 5e5,
        spelling: scaling,
    }
    assert torch.equal(traits_from_config(config, "here").rope.inv_freq(128), theirs)


def test_gguf_factors_divide_the_frequencies():
    plain = RopeTraits().inv_freq(8)
    scaled = RopeTraits(kind="factors", factors=(1.0, 2.0, 4.0, 8.0)).inv_freq(8)
    assert torch.equal(plain / torch.tensor([1.0, 2.0, 4.0, 8.0]), scaled)


def test_a_gguf_file_gives_the_weights_of_its_folder(tmp_path):
    traits, ours = load(make_llama(tmp_path / "hf"))
    write_model(tmp_path / "model.gguf", tmp_path / "hf", traits)
    gguf_file = GgufFile(tmp_path / "model.gguf")
    gguf_traits = traits_from_gguf(gguf_file.metadata, gguf_file.shapes, "file")
    assert gguf_traits == replace(traits, norm_eps=gguf_traits.norm_eps)
    assert gguf_traits.norm_eps == pytest.approx(traits.norm_eps)  # stored in fp32
    theirs = resident(gguf_file, gguf_traits)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(a.attn_in.qkv_proj, b.attn_in.qkv_proj)
        assert torch.equal(a.mlp.gate_up_proj, b.mlp.gate_up_proj)
    assert torch.equal(*(in_memory(weights.head().lm_head_VD) for weights in (ours, theirs)))


def test_a_quantised_gguf_file_is_close(tmp_path):
    traits, ours = load(make_llama(tmp_path / "hf", hidden_size=64, num_attention_heads=4))
    write_model(tmp_path / "model.gguf", tmp_path / "hf", traits, kind="Q8_0")
    gguf_file = GgufFile(tmp_path / "model.gguf")
    assert gguf_file.stored_as()[0] == "Q8_0"
    theirs = resident(gguf_file, traits)
    difference = ours.layers[0].attn_in.qkv_proj - theirs.layers[0].attn_in.qkv_proj
    assert 0 < difference.abs().max() < 0.01


def test_unpermute_undoes_ggufs_order():
    weight = torch.arange(24.0).reshape(12, 2)
    permuted = weight.reshape(2, 2, 3, 2).transpose(1, 2).reshape(12, 2)
    assert torch.equal(unpermute(permuted, 2), weight)


@pytest.mark.parametrize("head", ["again", "its own", "misshapen"])
def test_a_head_beside_a_tied_embedding_must_be_the_embedding(tmp_path, head):
    """transformers 5 takes the stored one, earlier versions the embedding."""
    from safetensors.torch import load_file, save_file

    path = make_llama(tmp_path, tie_word_embeddings=True) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if head == "its own":
        tensors["lm_head.weight"][-1, -1] += 1
    elif head == "misshapen":
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, path)
    operators = resolve("reference", "cpu", Lane.FP32)
    if head == "again":
        load_model(locate(str(tmp_path)), operators)
        return
    with pytest.raises(ModelError, match=r"'lm_head\.weight' (differs from the embedding|has shape)"):
        load_model(locate(str(tmp_path)), operators)


def test_a_head_that_is_missing_may_be_the_embedding(tmp_path):
    edited(make_llama(tmp_path, tie_word_embeddings=True), tie_word_embeddings=...)
    with pytest.raises(ModelError, match=r"'lm_head\.weight' .* is missing.* set 'tie_word_embeddings' to true"):
        load(tmp_path)


def test_a_text_configuration_that_is_null_is_none(tmp_path):
    edited(make_llama(tmp_path), text_config=None)
    assert context_length(locate(str(tmp_path))) == load(tmp_path)[0].max_positions


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "Q8_0"])
def test_some_rows_of_a_fused_matrix_are_those_of_the_whole(tmp_path, kind):
    traits, _ = load(make_llama(tmp_path / "hf", hidden_size=64, num_attention_heads=4, intermediate_size=96))
    files = SafetensorsFiles(tmp_path / "hf")
    if kind != "safetensors":
        write_model(tmp_path / "model.gguf", tmp_path / "hf", traits, kind="F32" if kind == "gguf" else kind)
        files = GgufFile(tmp_path / "model.gguf")
    layer = Assembler(files, traits, Lane.BF16, CPU, "here").layer(1)
    for matrix in (layer.attn_in.qkv_proj, layer.mlp.gate_up_proj, layer.attn_out.o_proj):
        whole = in_memory(matrix)
        for start, stop in ((0, 1), (3, 29), (15, 16), (60, 70), (matrix.shape[0] - 5, matrix.shape[0])):
            if stop <= matrix.shape[0]:
                assert torch.equal(matrix.read(start, stop), whole[start:stop])


@pytest.mark.parametrize("kind", ["safetensors", "Q8_0"])
def test_tokens_get_their_rows_of_the_embedding(tmp_path, kind):
    traits, ours = load(make_llama(tmp_path / "hf", hidden_size=64, num_attention_heads=4))
    table = SafetensorsFiles(tmp_path / "hf").read("model.embed_tokens.weight")
    if kind != "safetensors":
        write_model(tmp_path / "model.gguf", tmp_path / "hf", traits, kind=kind)
        files = GgufFile(tmp_path / "model.gguf")
        table, ours = files.read("model.embed_tokens.weight"), resident(files, traits)
    ids = torch.tensor([7, 399, 7, 0, 12, 399])
    assert torch.equal(ours.embed(ids), table[ids])
    assert ours.embed(ids[:0]).shape == (0, 64)


def edit_tensors(folder, edit):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name",
    ["model.layers.2.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"],
)
def test_numbers_that_are_none_are_refused_with_their_tensor(tmp_path, name, dtype, value):
    def edit(tensors):
        tensors[name].view(-1)[-3] = value

    edit_tensors(make_llama(tmp_path, dtype=dtype), edit)
    with pytest.raises(ModelError, match=f"'{name}' holds NaN or infinity".replace(".", r"\.")):
        load(tmp_path)


def test_a_number_beyond_bf16_is_refused_in_its_lane_alone(tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"

    def edit(tensors):
        tensors[name][0, 0] = 3.4e38  # the largest bf16 is 3.39e38

    edit_tensors(make_llama(tmp_path), edit)
    load(tmp_path, Lane.FP32)
    with pytest.raises(ModelError, match=r"down_proj.*as bfloat16"):
        load(tmp_path, Lane.BF16)


def test_a_stored_type_that_cannot_be_read_is_named(tmp_path):
    def edit(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].double()

    edit_tensors(make_llama(tmp_path), edit)
    with pytest.raises(ModelError, match=r"down_proj.*stored as F64; supported: F32, F16, BF16"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["cut short", "written to"])
def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path, damage):
    _, weights = load(make_llama(tmp_path))
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1000] if damage == "cut short" else content)
    with pytest.raises(ModelError, match="was changed while its weights were in use"):
        weights.embed(torch.arange(5))
