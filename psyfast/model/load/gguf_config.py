"""From a GGUF file's metadata to Traits: its keys under the names of a config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from psyfast.errors import ModelError
from psyfast.model.families import FAMILIES, Family
from psyfast.model.load import gguf_delta, gguf_experts
from psyfast.model.load.config import traits_of_family
from psyfast.model.load.config_values import Config, positive_at
from psyfast.model.traits import Traits

_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}

_ROPE_KEYS = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_YARN_NEUTRAL = {"attn_factor": 1, "yarn_attn_factor": 1, "yarn_ext_factor": 1, "yarn_log_multiplier": 0}
"""Keys after `rope.scaling.` that change yarn's equations, and the value that does not."""


def traits_from_gguf(metadata: Config, tensors: Mapping[str, tuple[int, ...]], where: str) -> Traits:
    """Traits from a GGUF file's metadata (plain values by key) and its tensors' shapes by their Hugging Face names."""
    architecture = metadata.get("general.architecture")
    family = family_in(metadata)
    if family is None:
        known = ", ".join(dict.fromkeys(family.gguf_architecture for family in FAMILIES if family.gguf_architecture))
        raise ModelError(f"{where}: GGUF architecture '{architecture}' is not supported; supported: {known}")
    keys = _KEYS | (gguf_delta.KEYS if family.delta else {})
    try:
        config = _config_of(metadata, tensors, family, keys, where)
        # llama.cpp stores such norms with the 1 added.
        return replace(traits_of_family(config, family, where), unit_offset=False)
    except ModelError as error:
        keys |= _ROPE_KEYS | (gguf_experts.KEYS if family.expert_width else {})
        raise ModelError(_in_words_of_the_file(str(error), keys, family)) from error


def _in_words_of_the_file(message: str, keys: Mapping[str, str], family: Family) -> str:
    """A message about a config.json's keys with those that stand in the file."""
    theirs = {ours: f"{family.gguf_architecture}.{key}" for key, ours in keys.items()}
    return re.sub(r"'(\w+)'", lambda quoted: f"'{theirs.get(quoted[1], quoted[1])}'", message)


def _config_of(
    metadata: Config, tensors: Mapping[str, tuple[int, ...]], family: Family, keys: Mapping[str, str], where: str
) -> Config:
    """What a config.json of the same model would say. keys: its names by the file's."""
    architecture = family.gguf_architecture
    unsaid = gguf_experts.NOT_ASSUMED if family.expert_width else ()
    config = {
        **{key: value for key, value in family.defaults.items() if key not in unsaid},
        "num_key_value_heads": None,  # as many as heads of queries for llama.cpp, whatever the family's default
        "architectures": [family.architecture],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "vocab_size": tensors.get("model.embed_tokens.weight", (0, 0))[0],
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
    }
    for theirs, ours in keys.items():
        if (value := metadata.get(f"{architecture}.{theirs}")) is not None:
            config[ours] = value
    if (num_layers := decoder_layers(metadata, where)) is not None:
        config["num_hidden_layers"] = num_layers
    if family.delta:
        config |= _delta_sizes(metadata, str(architecture), config, where)
    if family.expert_width:
        config |= gguf_experts.experts_config(metadata, family, where)
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = metadata.get(f"{architecture}.rope.scaling.factor", 1.0)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling == "yarn" and family.sinks:  # of gpt-oss it is known how its ends are rounded: not at all
        config["rope_scaling"] = {"rope_type": "yarn", "truncate": False, **_yarn(metadata, str(architecture), where)}
    elif scaling != "none":
        of_sinks = ", yarn" if family.sinks else ""
        raise ModelError(
            f"{where}: rope scaling '{scaling}' is not supported in GGUF files; supported: none, linear{of_sinks}"
        )
    if "query_pre_attn_scalar" in family.honours:
        config["query_pre_attn_scalar"] = _query_scalar(config, str(architecture), where)
    return config


def _yarn(metadata: Config, architecture: str, where: str) -> Config:
    """What a file says of yarn under the names of a config.json. Raises ModelError."""
    for key, neutral in _YARN_NEUTRAL.items():
        if (value := metadata.get(f"{architecture}.rope.scaling.{key}")) not in (None, neutral):
            raise ModelError(f"{where}: {architecture}.rope.scaling.{key} = {value} is not supported")
    said = {ours: metadata.get(f"{architecture}.{theirs}") for theirs, ours in _ROPE_KEYS.items()}
    required = {"factor", "original_max_position_embeddings"}
    return {ours: value for ours, value in said.items() if value is not None or ours in required}


def family_in(metadata: Config) -> Family | None:
    """The family of a GGUF file's architecture; of those that share its name, the one with experts if the file has some."""
    architecture = metadata.get("general.architecture")
    named = [family for family in FAMILIES if family.gguf_architecture and family.gguf_architecture == architecture]
    with_experts = gguf_experts.has_experts(metadata)
    alike = [family for family in named if (family.expert_width is not None) == with_experts]
    return next(iter(alike or named), None)


def _delta_sizes(metadata: Config, architecture: str, config: Config, where: str) -> Config:
    """What a GGUF file says in other numbers than a config.json."""
    inner_size = positive_at(metadata, f"{architecture}.ssm.inner_size", where)
    num_value_heads = positive_at(config, "linear_num_value_heads", where)
    if inner_size % num_value_heads:
        raise ModelError(
            f"{where}: 'ssm.inner_size' is {inner_size}, expected a multiple of {num_value_heads} value heads"
        )
    return {
        "linear_value_head_dim": inner_size // num_value_heads,
        "partial_rotary_factor": _share(
            positive_at(metadata, f"{architecture}.rope.dimension_count", where), positive_at(config, "head_dim", where)
        ),
    }


def _share(num_rotated: int, head_dim: int) -> float:
    """The share of a head whose product with it is `num_rotated`, not a little less: 46 · (26 / 46) is 25.999…"""
    share = num_rotated / head_dim
    return share if int(head_dim * share) == num_rotated else math.nextafter(share, 1.0)


_WIDER_SCALARS = {("gemma2", 46), ("gemma3", 62)}
"""Architecture and number of layers of the two Gemmas whose scores are scaled by the residual's share of a head."""


def _query_scalar(config: Config, architecture: str, where: str) -> int:
    """What a GGUF file does not say and llama.cpp knows of each Gemma: whose square root the scores are divided by."""
    if (architecture, config["num_hidden_layers"]) in _WIDER_SCALARS:
        return positive_at(config, "hidden_size", where) // positive_at(config, "num_attention_heads", where)
    return positive_at(config, "head_dim", where)


def decoder_layers(metadata: Config, where: str) -> int | None:
    """Layers of the decoder itself, where others stand behind it that predict tokens further on, for faster generation.

    None: there are no others. Raises ModelError.
    """
    architecture = metadata.get("general.architecture")
    count, ahead = f"{architecture}.block_count", f"{architecture}.nextn_predict_layers"
    if metadata.get(ahead) in (None, 0):
        return None
    num_layers = positive_at(metadata, count, where) - positive_at(metadata, ahead, where)
    if num_layers < 1:
        raise ModelError(f"{where}: '{ahead}' is {metadata[ahead]} of {metadata[count]} layers, expected fewer")
    return num_layers
