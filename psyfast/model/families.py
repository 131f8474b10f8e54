"""The architectures that load, a row each: their names, and where they depart from the plain decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from psyfast.model.traits import Norms

Windows = Literal["none", "every", "late", "but_every_nth", "without_rope"]
"""Which layers see a window where `layer_types` does not say: none; every one, if there is a window; those from
max_window_layers on, if use_sliding_window; all but every nth; those without rotary embedding, if use_sliding_window.
"""


@dataclass(frozen=True)
class Family:
    """One architecture.

    model_types: in a config.json that names no architecture. gguf_architecture: in GGUF files, None where those are not
    read; gguf_pairs: there, rows of q and k stand with the two of a rotary pair side by side. bias: of the projections:
    as `attention_bias` says, on q, k and v alone, or none. nth: of `but_every_nth`. rope_a_type: full and windowed layers
    have their own rotary embeddings. honours: keys beyond the plain decoder's that are read (NEUTRAL lists the rest).
    defaults: what a config means where it is silent. scaled_embedding: by sqrt(hidden_size). can_tie: whether
    tie_word_embeddings is listened to. num_extra_rows: of the embedding. skips: the key that lists layers which text
    does not run through. vision: prefixes of tensors that text does not need (`model.` before them or not).
    """

    architecture: str
    model_types: tuple[str, ...]
    gguf_architecture: str | None = None
    gguf_pairs: bool = False
    norms: Norms = "before"
    unit_offset: bool = False
    qk_norm: Literal["head", "projection"] | None = None
    bias: Literal["configured", "qkv", "none"] = "none"
    fused: bool = False
    windows: Windows = "none"
    nth: int = 1
    rope_a_type: bool = False
    scaled_embedding: bool = False
    can_tie: bool = True
    num_extra_rows: int = 0
    skips: str | None = None
    vision: tuple[str, ...] = ()
    honours: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)


NEUTRAL: Mapping[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_bidirectional_attention": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "no_rope_layers": None,
    "clip_qkv": None,
    "num_experts": None,
    "num_local_experts": None,
}
"""Keys that change a decoder's equations, and the value that does not: a family that does not honour one refuses others."""

_BIAS, _WINDOWED = frozenset({"attention_bias"}), frozenset({"sliding_window"})
_QWEN_2 = {"sliding_window": 4096, "max_window_layers": 28}

FAMILIES: tuple[Family, ...] = (
    Family(
        "LlamaForCausalLM",
        ("llama",),
        gguf_architecture="llama",
        gguf_pairs=True,
        bias="configured",
        honours=_BIAS,
    ),
    Family(
        "Qwen2ForCausalLM",
        ("qwen2",),
        gguf_architecture="qwen2",
        bias="qkv",
        windows="late",
        honours=_BIAS | _WINDOWED | {"use_sliding_window"},
        defaults=_QWEN_2,
    ),
    Family(
        "Qwen3ForCausalLM",
        ("qwen3",),
        gguf_architecture="qwen3",
        bias="configured",
        qk_norm="head",
        windows="late",
        honours=_BIAS | _WINDOWED | {"use_sliding_window"},
        defaults={**_QWEN_2, "head_dim": 128},
    ),
    Family(
        "MistralForCausalLM",
        ("mistral",),
        windows="every",
        honours=_WINDOWED,
    ),
    Family(
        "Phi3ForCausalLM",
        ("phi3",),
        fused=True,
        windows="every",
        honours=_WINDOWED,
        defaults={"rms_norm_eps": 1e-5},
    ),
    Family(
        "SmolLM3ForCausalLM",
        ("smollm3",),
        bias="configured",
        windows="without_rope",
        honours=_BIAS | _WINDOWED | {"use_sliding_window", "no_rope_layers"},
        defaults={"rope_theta": 2_000_000.0, "no_rope_layer_interval": 4, "tie_word_embeddings": True},
    ),
)
"""Architectures that load. The next family of the same equations is another row."""
