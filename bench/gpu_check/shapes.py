"""The shapes that are timed: published sizes of real models, with random weights in them.

Sources: the models' own configurations (config.json of meta-llama/Llama-3.2-1B and Qwen/Qwen3-8B).
"""

from __future__ import annotations

from psyfast.model.rope import RopeTraits
from psyfast.model.traits import Traits

LLAMA_3_2_1B = Traits(
    family="LlamaForCausalLM",
    num_layers=16,
    hidden_size=2048,
    intermediate_size=8192,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    vocab_size=128_256,
    max_positions=131_072,
    norm_eps=1e-5,
    rope=RopeTraits(
        base=500_000.0,
        kind="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    ),
    tied_head=True,
)

QWEN3_8B = Traits(
    family="Qwen3ForCausalLM",
    num_layers=36,
    hidden_size=4096,
    intermediate_size=12_288,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151_936,
    max_positions=40_960,
    norm_eps=1e-6,
    rope=RopeTraits(base=1_000_000.0),
    qk_norm="head",
)

MODELS = {"Llama-3.2-1B": LLAMA_3_2_1B, "Qwen3-8B": QWEN3_8B}
