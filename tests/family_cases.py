"""Two odd shapes of each family, small enough for milliseconds; tests.family_models makes random models of them."""

from __future__ import annotations

from tests.expert_cases import EXPERT_CASES
from tests.rope_cases import LINEAR, LLAMA3, YARN

SHAPE = {
    "vocab_size": 400,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
"""Of every case, which changes some of it."""

CASES: dict[str, tuple[str, dict]] = {
    **EXPERT_CASES,
    "llama, tied, heads of 80, llama3": (
        "LlamaForCausalLM",
        {
            "head_dim": 80,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "llama, heads of 96, biases, linear": (
        "LlamaForCausalLM",
        {"head_dim": 96, "attention_bias": True, "rope_parameters": LINEAR},
    ),
    "qwen2, tied, heads of 80": (
        "Qwen2ForCausalLM",
        {"hidden_size": 240, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen2, windows, yarn": (
        "Qwen2ForCausalLM",
        {
            "hidden_size": 96,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 37,
            "max_window_layers": 2,
            "rope_parameters": YARN,
        },
    ),
    "qwen2, layer types, linear": (
        "Qwen2ForCausalLM",
        {
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": LINEAR,
        },
    ),
    "qwen3, tied, heads of 80": (
        "Qwen3ForCausalLM",
        {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 80, "tie_word_embeddings": True},
    ),
    "qwen3, biases, windows, yarn": (
        "Qwen3ForCausalLM",
        {
            "head_dim": 96,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 50,
            "max_window_layers": 1,
            "rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.1, "beta_fast": 16, "beta_slow": 2},
        },
    ),
    "mistral, windows, heads of 80": (
        "MistralForCausalLM",
        {"sliding_window": 33, "head_dim": 80, "num_attention_heads": 7, "num_key_value_heads": 1},
    ),
    "mistral, no window, tied, llama3": (
        "MistralForCausalLM",
        {"sliding_window": None, "head_dim": 96, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "phi3, windows, heads of 80": (
        "Phi3ForCausalLM",
        {"hidden_size": 240, "num_attention_heads": 3, "num_key_value_heads": 1, "sliding_window": 47},
    ),
    "phi3, tied, partial rotary": (
        "Phi3ForCausalLM",
        {
            "hidden_size": 192,
            "num_attention_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75},
        },
    ),
    "smollm3, tied, heads of 80": (
        "SmolLM3ForCausalLM",
        {"hidden_size": 240, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "smollm3, biases, windows where nothing turns, yarn": (
        "SmolLM3ForCausalLM",
        {
            "hidden_size": 192,
            "num_attention_heads": 2,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 40,
            "no_rope_layers": [1, 0, 0, 1],
            "rope_parameters": YARN,
        },
    ),
    "olmo3, heads of 80, yarn on full layers": (
        "Olmo3ForCausalLM",
        {
            "hidden_size": 240,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "sliding_window": 45,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": YARN,
            },
        },
    ),
    "olmo3, tied, grouped heads of 96, biases": (
        "Olmo3ForCausalLM",
        {
            "hidden_size": 384,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "sliding_window": 128,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "gemma2, soft caps, heads of 80": (
        "Gemma2ForCausalLM",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 80,
            "query_pre_attn_scalar": 100,
            "sliding_window": 39,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma2, heads of 96 as scaled": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 96,
            "query_pre_attn_scalar": 96,
            "sliding_window": 39,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma2, no caps, untied, biases": (
        "Gemma2ForCausalLM",
        {
            "head_dim": 96,
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 96,
            "sliding_window": 70,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "hidden_activation": "gelu",
            "rope_parameters": LINEAR,
        },
    ),
    "gemma3, two bases, heads of 80": (
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 7,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 80,
            "query_pre_attn_scalar": 100,
            "sliding_window": 39,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3, heads of 96 as scaled": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 96,
            "num_hidden_layers": 6,
            "query_pre_attn_scalar": 96,
            "sliding_window": 39,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": LINEAR,
            },
        },
    ),
    "gemma3, linear on full layers, untied": (
        "Gemma3ForCausalLM",
        {
            "head_dim": 96,
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 96,
            "sliding_window": 70,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": False,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": LINEAR,
            },
        },
    ),
    "gemma3 with a vision tower": (
        "Gemma3ForConditionalGeneration",
        {"head_dim": 80, "sliding_window": 39, "num_hidden_layers": 6, "tie_word_embeddings": True},
    ),
    "gemma3 with a vision tower, untied": (
        "Gemma3ForConditionalGeneration",
        {"head_dim": 96, "sliding_window": 50, "num_hidden_layers": 2, "tie_word_embeddings": False},
    ),
    "qwen2.5-vl, three axes, heads of 80": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "hidden_size": 240,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [10, 15, 15]},
        },
    ),
    "qwen2.5-vl, tied, windows": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "hidden_size": 192,
            "num_attention_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 60,
            "max_window_layers": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [16, 16, 16]},
        },
    ),
    "qwen3-vl, interleaved axes, heads of 80": (
        "Qwen3VLForConditionalGeneration",
        {
            "head_dim": 80,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [20, 10, 10],
                "mrope_interleaved": True,
            },
        },
    ),
    "qwen3-vl, tied, heads of 96": (
        "Qwen3VLForConditionalGeneration",
        {
            "head_dim": 96,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [16, 16, 16]},
        },
    ),
    "qwen3.5, odd heads, partial rotary": (
        "Qwen3_5ForCausalLM",
        {
            "head_dim": 80,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 6,
            "linear_key_head_dim": 24,
            "linear_value_head_dim": 40,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        },
    ),
    "qwen3.5, tied, delta rule last, wide filter": (
        "Qwen3_5ForCausalLM",
        {
            "head_dim": 96,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 80,
            "linear_value_head_dim": 96,
            "linear_conv_kernel_dim": 6,
            "tie_word_embeddings": True,
            "rope_parameters": YARN | {"partial_rotary_factor": 0.5},
        },
    ),
    "qwen3.5 with a vision tower": (
        "Qwen3_5ForConditionalGeneration",
        {
            "head_dim": 96,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "partial_rotary_factor": 0.25,
                "mrope_section": [4, 4, 4],
                "mrope_interleaved": True,
            },
        },
    ),
    "qwen3.5 with a vision tower, untied": (
        "Qwen3_5ForConditionalGeneration",
        {
            "head_dim": 80,
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 5,
            "linear_key_head_dim": 100,
            "linear_value_head_dim": 30,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        },
    ),
    "llama vision, heads of 80": (
        "MllamaForConditionalGeneration",
        {
            "hidden_size": 240,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "num_hidden_layers": 5,
            "cross_attention_layers": [1, 3],
            "rope_parameters": LLAMA3,
        },
    ),
    "llama vision, last layer skipped": (
        "MllamaForConditionalGeneration",
        {
            "hidden_size": 192,
            "num_attention_heads": 2,
            "cross_attention_layers": [0, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
}

_QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "patch_size": 4}
VISION: dict[str, dict] = {
    "Gemma3ForConditionalGeneration": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "Qwen2_5_VLForConditionalGeneration": {**_QWEN_VISION, "fullatt_block_indexes": [0]},
    "Qwen3_5ForConditionalGeneration": {**_QWEN_VISION, "num_position_embeddings": 16},
    "Qwen3VLForConditionalGeneration": {**_QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    "MllamaForConditionalGeneration": {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    },
}
"""Towers as small as they may be: they are saved, and text never sees them."""
