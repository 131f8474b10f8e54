"""Floating-point operations that scoring requires; nothing is credited for work that was done without need."""

from __future__ import annotations

from psyfast.model.traits import Traits


def required_flops(traits: Traits, num_tokens: int, num_scored: int) -> int:
    """Of one sequence: 2 a weight and token, 4 x head size x query heads a causal pair, 2 x hidden x vocabulary a scored row."""
    linear = 2 * traits.num_layers * traits.num_layer_params * num_tokens
    pairs = num_tokens * (num_tokens + 1) // 2
    attention = 4 * traits.num_layers * traits.head_dim * traits.num_heads * pairs
    return linear + attention + 2 * traits.hidden_size * traits.vocab_size * num_scored
