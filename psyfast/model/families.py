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
    defaults: what a config means where it is silent. null_heads: null in num_key_value_heads says as many as heads of
    queries, though silence says the default. scaled_embedding: by sqrt(hidden_size). can_tie: whether
    tie_word_embeddings is listened to. num_extra_rows: of the embedding. skips: the key that lists layers which text
    does not run through. vision: prefixes of tensors that text does not need (`model.` before them or not). output_gate:
    of attention. delta: layers mix by the delta rule, all but every nth where `layer_types` does not say. expert_width: the
    key with the feed-forward width of an expert, where layers have experts; fused_experts: those of a layer stand in one
    tensor, with biases. activation: of the MLP, whatever `hidden_act` says. sinks: of attention.
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
    output_gate: bool = False
    delta: bool = False
    expert_width: str | None = None
    fused_experts: bool = False
    activation: str | None = None
    sinks: bool = False
    honours: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    null_heads: bool = False


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
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attn_output_gate": False,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
"""Keys that change a decoder's equations, and the value that does not: a family that does not honour one refuses others."""

_BIAS, _WINDOWED = frozenset({"attention_bias"}), frozenset({"sliding_window"})
_QWEN_2 = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA = frozenset(
    {
        "attention_bias",
        "sliding_window",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    }
)
_GEMMA_2 = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
"""Published configurations leave out what is so."""
_GEMMA_3 = {
    **_GEMMA_2,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}

_EXPERTS = frozenset({"num_experts", "num_local_experts"})
_SPARSE = frozenset({"decoder_sparse_step", "mlp_only_layers"})
_QWEN_3_5 = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "attn_output_gate": True,
}

_GPT_OSS = {
    "num_key_value_heads": 8,
    "attention_bias": True,
    "head_dim": 64,
    "sliding_window": 128,
    "rope_theta": 150_000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "rms_norm_eps": 1e-5,
    "norm_topk_prob": True,
    "num_experts_per_tok": 4,
}

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
        null_heads=True,
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
        null_heads=True,
    ),
    Family(
        "Qwen3MoeForCausalLM",
        ("qwen3_moe",),
        gguf_architecture="qwen3moe",
        bias="configured",
        qk_norm="head",
        expert_width="moe_intermediate_size",
        honours=_BIAS | _EXPERTS | _SPARSE,
        defaults={"num_key_value_heads": 4, "use_sliding_window": False},
    ),
    Family(
        "MixtralForCausalLM",
        ("mixtral",),
        gguf_architecture="llama",
        gguf_pairs=True,
        windows="every",
        expert_width="intermediate_size",
        honours=_WINDOWED | _EXPERTS,
        defaults={
            "num_key_value_heads": 8,
            "norm_topk_prob": True,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
        },
    ),
    Family(
        "OlmoeForCausalLM",
        ("olmoe",),
        gguf_architecture="olmoe",
        bias="configured",
        qk_norm="projection",
        expert_width="intermediate_size",
        honours=_BIAS | _EXPERTS,
        defaults={"rms_norm_eps": 1e-5},
    ),
    Family(
        "GptOssForCausalLM",
        ("gpt_oss",),
        gguf_architecture="gpt-oss",
        bias="configured",
        windows="but_every_nth",
        nth=2,
        expert_width="intermediate_size",
        fused_experts=True,
        activation="clamped_swiglu",
        sinks=True,
        honours=_BIAS | _WINDOWED | _EXPERTS,
        defaults=_GPT_OSS,
    ),
    Family(
        "MistralForCausalLM",
        ("mistral",),
        windows="every",
        honours=_WINDOWED,
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
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
        gguf_architecture="smollm3",
        gguf_pairs=True,
        bias="configured",
        windows="without_rope",
        honours=_BIAS | _WINDOWED | {"use_sliding_window", "no_rope_layers"},
        defaults={
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
        },
        null_heads=True,
    ),
    Family(
        "Olmo3ForCausalLM",
        ("olmo3",),
        norms="after",
        qk_norm="projection",
        bias="configured",
        windows="but_every_nth",
        nth=4,
        rope_a_type=True,
        honours=_BIAS | _WINDOWED,
        defaults={"sliding_window": 4096, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
    ),
    Family(
        "Gemma2ForCausalLM",
        ("gemma2",),
        gguf_architecture="gemma2",
        norms="around",
        unit_offset=True,
        bias="configured",
        windows="but_every_nth",
        nth=2,
        scaled_embedding=True,
        honours=_GEMMA,
        defaults={**_GEMMA_2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    Family(
        "Gemma3ForCausalLM",
        ("gemma3_text",),
        gguf_architecture="gemma3",
        norms="around",
        unit_offset=True,
        qk_norm="head",
        bias="configured",
        windows="but_every_nth",
        nth=6,
        rope_a_type=True,
        scaled_embedding=True,
        honours=_GEMMA - {"attn_logit_softcapping"},
        defaults=_GEMMA_3,
    ),
    Family(
        "Gemma3ForConditionalGeneration",
        ("gemma3",),
        norms="around",
        unit_offset=True,
        qk_norm="head",
        bias="configured",
        windows="but_every_nth",
        nth=6,
        rope_a_type=True,
        scaled_embedding=True,
        vision=("vision_tower.", "multi_modal_projector."),
        honours=_GEMMA - {"attn_logit_softcapping"},
        defaults=_GEMMA_3,
    ),
    Family(
        "Qwen2_5_VLForConditionalGeneration",
        ("qwen2_5_vl",),
        bias="qkv",
        windows="late",
        vision=("visual.",),
        honours=_BIAS | _WINDOWED | {"use_sliding_window"},
        defaults={
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_window_layers": 80,
            "rope_theta": 1_000_000.0,
            "rms_norm_eps": 1e-5,
        },
        null_heads=True,
    ),
    Family(
        "Qwen3VLForConditionalGeneration",
        ("qwen3_vl",),
        bias="configured",
        qk_norm="head",
        vision=("visual.",),
        honours=_BIAS,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "rope_theta": 500_000.0},
        null_heads=True,
    ),
    Family(
        "Qwen3_5ForCausalLM",
        ("qwen3_5_text",),
        gguf_architecture="qwen35",
        unit_offset=True,
        qk_norm="head",
        output_gate=True,
        delta=True,
        nth=4,
        vision=("mtp.",),
        honours=frozenset({"attn_output_gate"}),
        defaults=_QWEN_3_5,
    ),
    Family(
        "Qwen3_5ForConditionalGeneration",
        ("qwen3_5",),
        unit_offset=True,
        qk_norm="head",
        output_gate=True,
        delta=True,
        nth=4,
        vision=("visual.", "mtp."),
        honours=frozenset({"attn_output_gate"}),
        defaults=_QWEN_3_5,
    ),
    Family(
        "MllamaForConditionalGeneration",
        ("mllama",),
        can_tie=False,
        num_extra_rows=8,
        skips="cross_attention_layers",
        vision=("vision_model.", "multi_modal_projector."),
        defaults={
            "num_key_value_heads": 8,
            "rope_theta": 500_000.0,
            "rms_norm_eps": 1e-5,
            "cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38),
        },
    ),
)
"""Architectures that load. The next family of the same equations is another row."""
