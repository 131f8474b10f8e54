"""From a Hugging Face config.json or a GGUF file's metadata to Traits: the one place that reads their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psyfast.errors import ModelError
from psyfast.model.traits import FAMILIES, Family, RopeTraits, Traits
from psyfast.ops.reference import ACTIVATIONS


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The row of FAMILIES that a config names; remote code is never run, so nothing else can load."""
    architectures = config.get("architectures") or []
    for family in FAMILIES:
        if family.architecture in architectures or (
            not architectures and config.get("model_type") in family.model_types
        ):
            return family
    named = ", ".join(map(str, architectures)) or config.get("model_type", "none named")
    remote = " (its remote code is never run)" if "auto_map" in config else ""
    raise ModelError(f"{where}: architecture {named} is not supported{remote}; supported: {_supported()}")


def _supported() -> str:
    return ", ".join(family.architecture for family in FAMILIES)


def traits_from_config(config: Mapping[str, Any], where: str) -> Traits:
    """Traits of a supported Hugging Face config; ModelError names the key that is missing or cannot be honoured."""
    family = family_of(config, where)
    _refuse_unknown_equations(config, where)
    hidden_size, num_heads = _positive(config, "hidden_size", where), _positive(config, "num_attention_heads", where)
    num_kv_heads = _positive(config, "num_key_value_heads", where, default=num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{where}: {num_heads} query heads cannot be shared by {num_kv_heads} key/value heads")
    bias = bool(config.get("attention_bias", False))
    return Traits(
        family=family.architecture,
        num_layers=_positive(config, "num_hidden_layers", where),
        hidden_size=hidden_size,
        intermediate_size=_positive(config, "intermediate_size", where),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_positive(config, "head_dim", where, default=hidden_size // num_heads),
        vocab_size=_positive(config, "vocab_size", where),
        max_positions=_positive(config, "max_position_embeddings", where),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope=_rope(config, where),
        qkv_bias=bias,
        o_bias=bias,
        activation=str(config.get("hidden_act", "silu")),
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def _refuse_unknown_equations(config: Mapping[str, Any], where: str) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ModelError(f"{where}: hidden_act '{activation}' is not supported; supported: {', '.join(ACTIVATIONS)}")
    if config.get("mlp_bias"):
        raise ModelError(f"{where}: mlp_bias = true is not supported for this architecture")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "of an unnamed kind")
        raise ModelError(
            f"{where}: quantised weights ({method}) are not supported; use the unquantised model or a GGUF"
        )


def _positive(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{where}: '{key}' is {value!r}, expected a positive integer")
    return value


def _rope(config: Mapping[str, Any], where: str) -> RopeTraits:
    """Reads both spellings: rope_theta with rope_scaling, and the newer rope_parameters."""
    scaling: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    base = float(scaling.get("rope_theta", config.get("rope_theta", 10_000.0)))
    share = float(config.get("partial_rotary_factor", scaling.get("partial_rotary_factor", 1.0)))
    if kind == "default":
        return RopeTraits(base=base, rotated_share=share)
    try:
        if kind == "linear":
            return RopeTraits(base=base, kind="linear", factor=float(scaling["factor"]), rotated_share=share)
        if kind == "llama3":
            return RopeTraits(
                base=base,
                kind="llama3",
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_max_positions=int(scaling["original_max_position_embeddings"]),
                rotated_share=share,
            )
    except KeyError as error:
        raise ModelError(f"{where}: rope scaling '{kind}' lacks its key {error}") from error
    raise ModelError(f"{where}: rope scaling '{kind}' is not supported; supported: default, linear, llama3")


def traits_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], where: str) -> Traits:
    """Traits from a GGUF file's metadata (plain values by key) and its tensors' shapes by their Hugging Face names."""
    architecture = metadata.get("general.architecture")
    family = next((family for family in FAMILIES if family.gguf_architecture == architecture), None)
    if family is None:
        known = ", ".join(family.gguf_architecture for family in FAMILIES if family.gguf_architecture)
        raise ModelError(f"{where}: GGUF architecture '{architecture}' is not supported; supported: {known}")
    config = {
        "architectures": [family.architecture],
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "vocab_size": tensors.get("model.embed_tokens.weight", (0, 0))[0],
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
    }
    for theirs, ours in _GGUF_KEYS.items():
        if (value := metadata.get(f"{architecture}.{theirs}")) is not None:
            config[ours] = value
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling == "linear":
        factor = metadata.get(f"{architecture}.rope.scaling.factor", 1.0)
        config["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    elif scaling != "none":
        raise ModelError(f"{where}: rope scaling '{scaling}' is not supported in GGUF files; supported: none, linear")
    return traits_from_config(config, where)


_GGUF_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
