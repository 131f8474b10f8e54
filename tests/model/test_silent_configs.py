"""Keys that a configuration leaves out or has null for: what they mean is what they mean to transformers."""

import copy

import pytest

from psyfast.errors import ModelError
from psyfast.model.load.config import traits_from_config
from tests.model.published import PUBLISHED


@pytest.mark.parametrize("architecture", sorted({config["architectures"][0] for config in PUBLISHED.values()}))
@pytest.mark.parametrize(
    "key",
    [
        "attention_bias",
        "decoder_sparse_step",
        "full_attention_interval",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "hidden_size",
        "no_rope_layer_interval",
        "norm_topk_prob",
        "num_experts_per_tok",
        "num_key_value_heads",
        "partial_rotary_factor",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "use_sliding_window",
    ],
)
def test_null_is_refused_where_transformers_refuses_it(architecture, key):
    """It would otherwise be the default of the key, or another one's."""
    config = copy.deepcopy(next(config for config in PUBLISHED.values() if config["architectures"] == [architecture]))
    text = config.get("text_config", config)
    text |= {key: None, "layer_types": None}
    import transformers

    try:
        getattr(transformers, architecture).config_class.from_dict(copy.deepcopy(config))
    except Exception as error:
        assert "None" in str(error)
        with pytest.raises(ModelError, match=f"'{key}' is null, expected"):
            traits_from_config(config, "here")


CONFIG_OF = {config["architectures"][0]: config for config in PUBLISHED.values()}
"""One of each architecture."""
SILENT = {
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "attention_bias": "o_bias",
    "query_pre_attn_scalar": "attention_scale",
    "attn_logit_softcapping": "attention_soft_cap",
    "final_logit_softcapping": "logit_soft_cap",
    "sliding_window": "windows",
    "layer_types": "windows",
}
"""Keys, and the trait that they are read into."""


def with_text(architecture, key, value=None, *, silent=False):
    """An architecture's configuration with another value, or none, for a key of its text body."""
    config = copy.deepcopy(CONFIG_OF[architecture])
    text = config.get("text_config", config)
    text.pop(key, None) if silent else text.update({key: value})
    return config


@pytest.mark.parametrize("architecture", sorted(CONFIG_OF))
def test_silence_means_what_it_means_to_transformers(architecture):
    import transformers

    config_class, num_compared = getattr(transformers, architecture).config_class, 0
    for key, trait in SILENT.items():
        config = with_text(architecture, key, silent=True)
        config.get("text_config", config)["num_attention_heads"] = 64  # any default divides it
        text = config_class.from_dict(copy.deepcopy(config)).get_text_config()
        value = getattr(text, key, None)
        if value is None and key not in ("attn_logit_softcapping", "final_logit_softcapping", "sliding_window"):
            continue  # transformers knows no such key of these
        aloud = copy.deepcopy(config)
        aloud.get("text_config", aloud)[key] = value
        silent, aloud = (getattr(traits_from_config(said, "here"), trait) for said in (config, aloud))
        assert silent == aloud, key
        num_compared += 1
    assert num_compared >= 5


@pytest.mark.parametrize("architecture", sorted(CONFIG_OF))
def test_silence_of_rotary_embeddings_means_what_it_means_to_transformers(architecture):
    import transformers

    silent = with_text(architecture, "rope_scaling", silent=True)
    text = silent.get("text_config", silent)
    for key in ("rope_parameters", "rope_theta", "rope_local_base_freq"):
        text.pop(key, None)
    aloud = copy.deepcopy(silent)
    read = getattr(transformers, architecture).config_class.from_dict(copy.deepcopy(silent)).get_text_config()
    aloud.get("text_config", aloud)["rope_parameters"] = read.rope_parameters
    assert traits_from_config(silent, "here") == traits_from_config(aloud, "here")


def test_an_older_spelling_of_rotary_scaling_takes_the_place_of_the_default():
    config = with_text("GptOssForCausalLM", "rope_scaling", {"rope_type": "linear", "factor": 2.0})
    config.pop("rope_parameters", None)
    rope = traits_from_config(config, "here").rope
    assert (rope.kind, rope.factor) == ("linear", 2.0)


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "SmolLM3ForCausalLM", "LlamaForCausalLM"])
def test_null_heads_of_keys_are_as_many_as_those_of_queries(architecture):
    traits = traits_from_config(with_text(architecture, "num_key_value_heads"), "here")
    assert traits.num_kv_heads == traits.num_heads


@pytest.mark.parametrize("architecture", ["Gemma2ForCausalLM", "Gemma3ForConditionalGeneration", "Olmo3ForCausalLM"])
def test_layers_with_a_window_that_is_null_are_refused(architecture):
    """transformers reads such a config, and fails as it runs."""
    config = with_text(architecture, "sliding_window")
    config.get("text_config", config).pop("layer_types", None)
    with pytest.raises(ModelError, match="'sliding_window' is null, expected a positive integer"):
        traits_from_config(config, "here")


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [
        ("Gemma3ForConditionalGeneration", False),
        ("Qwen3VLForConditionalGeneration", True),
        ("Qwen3_5ForConditionalGeneration", True),
    ],
)
def test_a_tied_head_of_the_text_alone_is_refused(architecture, tied):
    """transformers 5 reads what stands beside text_config, or its default; earlier ones read text_config."""
    config = with_text(architecture, "tie_word_embeddings", tied)
    config.pop("tie_word_embeddings", None)
    with pytest.raises(ModelError, match=f"'tie_word_embeddings' is {str(tied).lower()} in 'text_config' and missing"):
        traits_from_config(config, "here")
    for beside in (True, False):
        assert traits_from_config({**config, "tie_word_embeddings": beside}, "here").tied_head == beside
    same = with_text(architecture, "tie_word_embeddings", not tied)
    same.pop("tie_word_embeddings", None)
    assert traits_from_config(same, "here").tied_head == (not tied)
