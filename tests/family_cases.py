"""Random models of each family, made and saved by transformers: two odd shapes a family, small enough for milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny import make_tokenizer

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

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[str, dict]] = {
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
}


def make_case(folder: Path, case: str, *, seed: int = 0, **changes) -> Path:
    """A case's model and a tokenizer in `folder`; `changes` go to its configuration."""
    import transformers

    architecture, settings = CASES[case]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(seed)
    settings = {**SHAPE, **settings, **changes}
    spread = 1.4 * settings["hidden_size"] ** -0.5  # products of the size of their operands: peaked, not chaotic
    model = model_class(model_class.config_class(**{"initializer_range": spread, **settings})).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def transformers_nlls(folder: Path, architecture: str, ids: list[int]) -> torch.Tensor:
    """−log p(token | before) for every token but the first, by transformers in fp32 with its own attention. [T − 1]"""
    import transformers

    model_class = getattr(transformers, architecture)
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return -logits.double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
