"""Published configurations against what transformers makes of them; spellings, and what is refused by name."""

import copy
import math

import pytest
import torch

from psyfast.errors import ModelError
from psyfast.model.families import FAMILIES
from psyfast.model.load.checks import check_tensors
from psyfast.model.load.config import traits_from_config
from psyfast.model.load.fused_experts import FusedExperts, is_fused
from psyfast.model.load.names import plain_name
from psyfast.model.load.tensors import SafetensorsFiles
from tests.family_models import make_case
from tests.model.published import PUBLISHED, of_transformers, saved_by_transformers

LLAMA_3_SCALING = PUBLISHED["Llama-3.1-8B"]["rope_scaling"]


class Shapes:
    """Tensor files of which nothing but names and shapes is there."""

    files = ()

    def __init__(self, shapes):
        self.shapes = {plain_name(name): tuple(shape) for name, shape in shapes.items()}

    def stored_name(self, name):
        return name

    def dtype(self, name):
        return torch.bfloat16


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_what_transformers_makes_of_it(name):
    model, traits = of_transformers(PUBLISHED[name]), traits_from_config(PUBLISHED[name], name)
    tensors = saved_by_transformers(model)
    tied = getattr(model.config, "tie_word_embeddings", False) and bool(model._tied_weights_keys)
    assert traits.tied_head == tied
    if tied:
        del tensors["lm_head.weight"]
    files = Shapes(tensors)
    check_tensors(FusedExperts(files) if any(map(is_fused, files.shapes)) else files, traits, name)

    text = model.config.get_text_config()
    types = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    if not getattr(text, "layer_types", None) and getattr(text, "sliding_window", None):
        types = ["sliding_attention"] * text.num_hidden_layers
    windows = [text.sliding_window if kind == "sliding_attention" else None for kind in types]
    assert traits.windows == tuple(windows[idx] for idx in traits.stored_layers)
    assert traits.norm_eps == text.rms_norm_eps
    scalar = getattr(text, "query_pre_attn_scalar", traits.head_dim)
    assert traits.attention_scale == pytest.approx(1 / math.sqrt(scalar))
    for idx, kind in zip(traits.stored_layers, traits.kind_of_layer, strict=True):
        said = text.rope_parameters.get(types[idx], text.rope_parameters)
        rope = traits.kinds[kind].rope
        if rope is not None:
            assert (rope.base, rope.kind) == (said["rope_theta"], said["rope_type"])
            assert rope.factor == said.get("factor", 1.0)
            silent = 0.1 * math.log(rope.factor) + 1 if rope.kind == "yarn" else 1.0
            assert rope.attention_scale == pytest.approx(said.get("attention_factor", silent))


def test_every_family_has_a_published_configuration():
    named = {config["architectures"][0] for config in PUBLISHED.values()}
    assert named == {family.architecture for family in FAMILIES}


def test_llama_vision_skips_its_cross_attention():
    traits = traits_from_config(PUBLISHED["Llama-3.2-11B-Vision"], "here")
    assert traits.num_layers == 32 and traits.skipped_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    assert traits.stored_layers[:5] == (0, 1, 2, 4, 5) and traits.num_extra_rows == 8


def test_smollm3_turns_three_layers_of_four():
    traits = traits_from_config(PUBLISHED["SmolLM3-3B"], "here")
    assert [traits.kinds[kind].rope is None for kind in traits.kind_of_layer[:8]] == [False, False, False, True] * 2


OLD, NEW = "language_model.model.", "model.language_model."


@pytest.mark.parametrize(
    "case", ["qwen3-vl, tied, heads of 96", "llama vision, heads of 80", "gemma3 with a vision tower"]
)
def test_both_spellings_of_a_vision_models_text_load(tmp_path, case):
    from safetensors.torch import load_file, save_file

    folder = make_case(tmp_path, case)
    before, path = SafetensorsFiles(folder).shapes, folder / "model.safetensors"
    tensors = load_file(path)
    swapped = {}
    for name, value in tensors.items():
        other = NEW + name.removeprefix(OLD) if name.startswith(OLD) else name
        other = OLD + name.removeprefix(NEW) if name.startswith(NEW) else other
        swapped[other] = value
    assert swapped.keys() != tensors.keys()
    save_file(swapped, path)
    assert SafetensorsFiles(folder).shapes == before


@pytest.mark.parametrize("stray", ["visualiser.weight", "audio_tower.weight", "model.layers.9.mlp.up_proj.weight"])
def test_only_a_vision_towers_tensors_may_be_left_over(stray):
    name = "Qwen3-VL-2B"
    tensors = {key: value.shape for key, value in of_transformers(PUBLISHED[name]).state_dict().items()}
    del tensors["lm_head.weight"]
    with pytest.raises(ModelError, match=stray.replace(".", r"\.")):
        check_tensors(Shapes({**tensors, stray: (2, 2)}), traits_from_config(PUBLISHED[name], name), name)


def test_a_vision_tower_in_a_model_of_text_is_refused():
    config = PUBLISHED["Qwen3-0.6B"]
    tensors = {key: value.shape for key, value in of_transformers(config).state_dict().items()}
    with pytest.raises(ModelError, match=r"visual\.blocks"):
        check_tensors(Shapes({**tensors, "visual.blocks.0.weight": (2, 2)}), traits_from_config(config, "here"), "here")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
REFUSED = [
    ("Llama-3.1-8B", {"layer_types": ["sliding_attention"] * 32}, "no sliding window"),
    ("Llama-3.1-8B", {"sliding_window": 4096}, "sliding_window = 4096 is not supported for LlamaForCausalLM"),
    ("Llama-3.1-8B", {"num_local_experts": 8}, "num_local_experts"),
    ("Qwen2.5-7B", {"use_sliding_window": True, "sliding_window": 0, "max_window_layers": 9}, "sliding_window"),
    ("Qwen2.5-7B", {"layer_types": ["sliding_attention"] * 28}, "no sliding window is in use"),
    ("Qwen2.5-7B", {"layer_types": ["full_attention"] * 27}, "expected 28"),
    ("Qwen2.5-7B", {"layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
    ("Qwen2.5-7B", {"layer_types": "full_attention"}, "layer_types"),
    ("Qwen2.5-7B", {"use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers"),
    ("Qwen2.5-7B", {"layer_types": [["full_attention"]] * 28}, "layer_types"),
    ("Olmo-3-7B", {"rope_parameters": {"full_attention": "yarn"}}, "full_attention"),
    ("Qwen2.5-7B", {"rope_scaling": {**YARN, "factor": 0}}, "factor"),
    ("Qwen2.5-7B", {"rope_scaling": {**YARN, "mscale": "1", "mscale_all_dim": 1.0}}, "mscale"),
    ("Qwen2.5-7B", {"rope_theta": 1.0}, "rope_theta"),
    ("Llama-3.1-8B", {"rope_scaling": {**LLAMA_3_SCALING, "low_freq_factor": 4.0}}, "low_freq_factor"),
    ("Qwen2.5-7B", {"rope_scaling": {**YARN, "factor": None}}, "lacks its key 'factor'"),
    ("Qwen2.5-7B", {"rope_scaling": {**YARN, "attention_factor": "big"}}, "attention_factor"),
    ("Qwen2.5-7B", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "how long the whole text is"),
    ("Qwen2.5-7B", {"rope_scaling": "yarn"}, "rope_scaling"),
    ("Qwen3-0.6B", {"rms_norm_eps": "small"}, "rms_norm_eps"),
    ("Mistral-7B-v0.1", {"attention_bias": True}, "attention_bias = true is not supported for MistralForCausalLM"),
    ("Mistral-7B-v0.1", {"layer_types": ["full_attention"] * 32}, "every layer"),
    (
        "Phi-3-mini-4k-instruct",
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}},
        "how long the whole text is",
    ),
    ("SmolLM3-3B", {"no_rope_layers": [1, 2] * 18}, "no_rope_layers"),
    ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("SmolLM3-3B", {"mlp_bias": True}, "mlp_bias"),
    ("Olmo-3-7B", {"sliding_window": None}, "no sliding window"),
    ("gemma-2-2b", {"final_logit_softcapping": -30.0}, "final_logit_softcapping"),
    ("gemma-2-2b", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma-2-2b", {"hidden_activation": "relu"}, "relu"),
    ("gemma-3-270m", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma-3-270m", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gemma-3-4b-it", {"text_config": [1]}, "text_config"),
    ("Qwen3.5-0.8B", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported for Qwen3_5"),
    ("Qwen3.5-0.8B", {"attn_output_gate": False}, "attn_output_gate = false"),
    ("Qwen3.5-0.8B", {"attn_output_gate": "false"}, "'attn_output_gate' is 'false', expected true or false"),
    ("Llama-3.1-8B", {"tie_word_embeddings": "false"}, "'tie_word_embeddings' is 'false', expected true or false"),
    ("Llama-3.1-8B", {"attention_bias": 1}, "'attention_bias' is 1, expected true or false"),
    (
        "Qwen3.5-0.8B",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 1.5}},
        "'partial_rotary_factor' is 1.5, expected a share of a head",
    ),
    ("Qwen3.5-0.8B", {"attention_bias": True}, "attention_bias = true"),
    ("Llama-3.1-8B", {"head_dim": 127}, "'head_dim' is 127; expected an even number"),
    ("Qwen3.5-0.8B", {"head_dim": 255}, "'head_dim' is 255 and 'partial_rotary_factor' 0.25, so that 63"),
    ("Qwen3.5-0.8B", {"head_dim": 6}, "so that 1 of a head's numbers turn"),
    (
        "Qwen3.5-0.8B",
        {"head_dim": 2},
        "so that 0 of a head's numbers turn; expected an even number to turn, at least 2",
    ),
    ("Qwen2.5-7B", {"rope_scaling": {**YARN, "truncate": "false"}}, "'truncate' is 'false', expected true or false"),
    ("Qwen2.5-7B", {"rope_theta": 0}, "'rope_theta' is 0, expected a positive number"),
    ("Qwen2.5-7B", {"rope_theta": None}, "'rope_theta' is null, expected a value"),
    ("gemma-3-270m", {"rope_local_base_freq": 0}, "'rope_theta' is 0, expected a positive number"),
    ("Llama-3.1-8B", {"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000, expected at most 10,000"),
    ("Llama-3.1-8B", {"architectures": 5}, "'architectures' is 5, expected a list of names"),
    ("Llama-3.1-8B", {"architectures": "LlamaForCausalLM"}, "'architectures' is 'LlamaForCausalLM', expected a list"),
    ("Qwen3.5-0.8B", {"linear_num_value_heads": 24}, "24 value heads of linear attention"),
    ("Qwen3.5-0.8B", {"linear_num_key_heads": 0}, "'linear_num_key_heads' is 0"),
    ("Qwen3.5-0.8B", {"linear_conv_kernel_dim": "4"}, "'linear_conv_kernel_dim' is '4'"),
    ("Qwen3.5-0.8B", {"layer_types": ["linear_attention"]}, "'layer_types' is"),
    ("Qwen3.5-0.8B", {"layer_types": None, "full_attention_interval": 0}, "'full_attention_interval' is 0"),
    ("Llama-3.2-11B-Vision", {"cross_attention_layers": [40]}, "cross_attention_layers"),
    ("Llama-3.1-8B", {"num_experts": 8}, "num_experts = 8 is not supported for LlamaForCausalLM"),
    ("Qwen3-0.6B", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported for Qwen3ForCausalLM"),
    ("Qwen3-30B-A3B", {"num_experts": 0}, "'num_experts' is 0, expected a positive integer"),
    ("Qwen3-30B-A3B", {"num_experts": None}, "'num_experts' is null, expected a positive integer"),
    ("Qwen3-30B-A3B", {"num_experts": "128"}, "'num_experts' is '128', expected a positive integer"),
    ("Qwen3-30B-A3B", {"num_experts": [128]}, r"'num_experts' is \[128\], expected a positive integer"),
    ("Qwen3-30B-A3B", {"num_experts": True}, "'num_experts' is True, expected a positive integer"),
    ("Qwen3-30B-A3B", {"num_experts": 10**6}, "'num_experts' is 1000000, expected at most 10,000"),
    ("Qwen3-30B-A3B", {"num_local_experts": 64}, "'num_experts' and 'num_local_experts' differ: 128 and 64"),
    ("Qwen3-30B-A3B", {"num_local_experts": "64"}, "'num_local_experts' is '64'"),
    ("Mixtral-8x7B", {"num_local_experts": -8}, "'num_local_experts' is -8"),
    ("Mixtral-8x7B", {"num_local_experts": None}, "'num_local_experts' is null"),
    ("Qwen3-30B-A3B", {"num_experts_per_tok": 129}, "'num_experts_per_tok' is 129, but there are 128 experts"),
    ("Qwen3-30B-A3B", {"num_experts_per_tok": 0}, "'num_experts_per_tok' is 0"),
    ("OLMoE-1B-7B", {"num_experts_per_tok": None}, "'num_experts_per_tok' is null"),
    ("Qwen3-30B-A3B", {"moe_intermediate_size": 0}, "'moe_intermediate_size' is 0"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": [48]}, r"'mlp_only_layers' is \[48\], expected a list .* from 0 to 47"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": [-1]}, "'mlp_only_layers'"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": [True]}, "'mlp_only_layers'"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": ["0"]}, "'mlp_only_layers'"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": 0}, "'mlp_only_layers' is 0, expected a list"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": "0"}, "'mlp_only_layers' is '0', expected a list"),
    ("Qwen3-30B-A3B", {"decoder_sparse_step": 0}, "'decoder_sparse_step' is 0, expected a positive integer"),
    ("Qwen3-30B-A3B", {"decoder_sparse_step": 1.5}, "'decoder_sparse_step' is 1.5"),
    (
        "Qwen3-30B-A3B",
        {"use_sliding_window": True, "sliding_window": 4096},
        "use_sliding_window = true is not supported for Qwen3MoeForCausalLM",
    ),
    ("Qwen3-30B-A3B", {"norm_topk_prob": "true"}, "'norm_topk_prob' is 'true', expected true or false"),
    ("Mixtral-8x7B", {"norm_topk_prob": False}, "'norm_topk_prob' is false, expected true.* in MixtralForCausalLM"),
    ("gpt-oss-20b", {"norm_topk_prob": False}, "'norm_topk_prob' is false, expected true.* in GptOssForCausalLM"),
    ("Mixtral-8x7B", {"attention_bias": True}, "attention_bias = true is not supported for MixtralForCausalLM"),
    ("Mixtral-8x7B", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported for MixtralForCausalLM"),
    ("OLMoE-1B-7B", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\] is not supported for OlmoeForCausalLM"),
    ("OLMoE-1B-7B", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not supported for OlmoeForCausalLM"),
    ("OLMoE-1B-7B", {"sliding_window": 64}, "sliding_window = 64 is not supported for OlmoeForCausalLM"),
    ("Llama-3.2-11B-Vision", {"cross_attention_layers": list(range(40))}, "every layer"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(name, changes, message):
    config = copy.deepcopy(PUBLISHED[name])
    (config["text_config"] if "text_config" in config and "text_config" not in changes else config).update(changes)
    with pytest.raises(ModelError, match=message):
        traits_from_config(config, "here")


def test_a_key_that_is_missing_is_said_to_be():
    config = {key: value for key, value in PUBLISHED["Qwen3-0.6B"].items() if key != "hidden_size"}
    with pytest.raises(ModelError, match="'hidden_size' is missing, expected a positive integer"):
        traits_from_config(config, "here")


@pytest.mark.parametrize(("name", "key"), [("Qwen3-30B-A3B", "num_experts"), ("OLMoE-1B-7B", "num_experts_per_tok")])
def test_experts_of_which_nothing_is_said_are_missing(name, key):
    config = {said: value for said, value in PUBLISHED[name].items() if said != key}
    with pytest.raises(ModelError, match=f"'{key}' is missing, expected a positive integer"):
        traits_from_config(config, "here")


def test_both_spellings_of_the_number_of_experts_may_agree():
    config = PUBLISHED["Qwen3-30B-A3B"]
    one, other = {**config, "num_local_experts": 128}, {**config, "num_local_experts": 128, "num_experts": None}
    assert traits_from_config(one, "here") == traits_from_config(other, "here") == traits_from_config(config, "here")


def test_a_mistral_that_says_nothing_of_its_window_has_that_of_the_first():
    """As transformers reads it; newer ones say that they have none."""
    config = {key: value for key, value in PUBLISHED["Mistral-7B-v0.1"].items() if key != "sliding_window"}
    assert set(traits_from_config(config, "here").windows) == {4096}
    assert set(traits_from_config({**config, "sliding_window": None}, "here").windows) == {None}


def test_families_of_another_kind_are_refused_with_those_that_load():
    for architecture in (
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3NextForCausalLM",
        "Qwen2MoeForCausalLM",
        "DeepseekV3ForCausalLM",
        "Glm4MoeForCausalLM",
        "PhimoeForCausalLM",
    ):
        with pytest.raises(ModelError, match=f"{architecture} is not supported.*Olmo3ForCausalLM"):
            traits_from_config({"architectures": [architecture], "text_config": {}}, "here")


def test_a_window_that_is_switched_off_is_none():
    config = {**PUBLISHED["Llama-3.1-8B"], "sliding_window": 4096, "use_sliding_window": False}
    assert traits_from_config(config, "here") == traits_from_config(PUBLISHED["Llama-3.1-8B"], "here")


def test_qwen2_with_yarn_has_its_temperature():
    traits = traits_from_config({**PUBLISHED["Qwen2.5-7B"], "rope_scaling": YARN}, "here")
    assert traits.rope.attention_scale == pytest.approx(0.1 * math.log(4) + 1)
    inv_freq = traits.rope.inv_freq(128)
    plain = 1e6 ** -(torch.arange(0, 128, 2) / 128)
    assert torch.allclose(inv_freq[:20], plain[:20]) and torch.allclose(inv_freq[-10:], plain[-10:] / 4)
