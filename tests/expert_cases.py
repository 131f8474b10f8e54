"""Two odd shapes or more of each family with experts, as tests.family_cases has of the others."""

from __future__ import annotations

from tests.rope_cases import LINEAR, LLAMA3, YARN

EXPERT_CASES: dict[str, tuple[str, dict]] = {
    "qwen3 moe, heads of 80, shares of all": (
        "Qwen3MoeForCausalLM",
        {"head_dim": 80, "num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": 44},
    ),
    "qwen3 moe, tied, MLPs between, yarn, biases": (
        "Qwen3MoeForCausalLM",
        {
            "num_hidden_layers": 6,
            "head_dim": 12,
            "num_experts": 70,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 33,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
    ),
    "qwen3 moe, normalised, rows of whole blocks": (
        "Qwen3MoeForCausalLM",
        {
            "hidden_size": 96,
            "head_dim": 32,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
    "mixtral, windows, heads of 80": (
        "MixtralForCausalLM",
        {"head_dim": 80, "sliding_window": 41, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "mixtral, tied, one expert a token": (
        "MixtralForCausalLM",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True, "rope_parameters": LINEAR},
    ),
    "gpt-oss, sinks, windows, yarn": (
        "GptOssForCausalLM",
        {
            "head_dim": 16,
            "sliding_window": 35,
            "num_local_experts": 7,
            "num_experts_per_tok": 3,
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        },
    ),
    "gpt-oss, tied, heads of 80, no biases of attention": (
        "GptOssForCausalLM",
        {
            "hidden_size": 64,
            "intermediate_size": 66,
            "num_hidden_layers": 3,
            "head_dim": 80,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "sliding_window": 90,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "olmoe, norms over all heads": (
        "OlmoeForCausalLM",
        {"num_experts": 12, "num_experts_per_tok": 4, "num_key_value_heads": 6},
    ),
    "olmoe, tied, grouped heads, every expert, biases": (
        "OlmoeForCausalLM",
        {
            "num_experts": 4,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
        },
    ),
}
