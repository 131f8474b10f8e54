"""Required floating-point operations of a batch: what a share of the machine's peak is a share of.

    linear      2 · weights of the layers' matrices, for every token; of experts, those that a token uses, and the router
    attention   4 · head size · query heads · pairs of a token and a position it sees, itself included, in every layer
    delta rule  6 · key size · value size · value heads for every token, in a layer that mixes by it
    head        2 · hidden · vocabulary, for every scored row

Norms, rotary embedding, activations, softmax and the embedding count nothing. A token is one that the batch computes
(shared prefixes once, nothing after the last scored row), and a row with several entries is one row. "Every token" is
meant literally: in the last layer all tokens count in full, although the rows that nothing is predicted from need no
more there than their keys and values. What that credits beyond the need is told apart, as `spared`: about
1 / layers of linear and attention, times the share of rows that are not scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psyfast.plan.forest import IntArray
from psyfast.plan.records import Batch


@dataclass(frozen=True)
class DeltaShape:
    """The layers that mix by the delta rule: how many, whether the last of all is one, and their sizes.

    What a token costs is its recurrence's: a state read for the key, written, and read for the query. Chunks cost more.
    """

    num_layers: int
    is_last: bool
    num_channels: int
    num_value_heads: int
    key_dim: int
    value_dim: int

    @property
    def in_columns(self) -> int:
        """Columns of the projections that all tokens need, wanted or not."""
        return self.num_channels + 2 * self.num_value_heads

    @property
    def out_columns(self) -> int:
        """Of the output's gate and projection together."""
        return 2 * self.num_value_heads * self.value_dim

    @property
    def a_token(self) -> int:
        """Operations of the recurrence."""
        return 6 * self.key_dim * self.value_dim * self.num_value_heads


@dataclass(frozen=True)
class ExpertShape:
    """The layers that have experts in place of an MLP: how many, whether the last of all is one, and their sizes."""

    num_layers: int
    is_last: bool
    num_experts: int
    num_used: int
    intermediate_size: int

    def params(self, hidden_size: int) -> int:
        """Weights that a token meets in such a layer, besides its mixer's."""
        return hidden_size * (self.num_experts + 3 * self.num_used * self.intermediate_size)


@dataclass(frozen=True)
class ModelShape:
    """A decoder's sizes, as far as its products depend on them.

    windows: one a layer of attention, None for a layer that sees all. gated: attention's output has a gate.
    intermediate_size: of the layers that have an MLP and no experts.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    windows: tuple[int | None, ...]
    gated: bool = False
    delta: DeltaShape | None = None
    experts: ExpertShape | None = None

    @property
    def mlp_params(self) -> int:
        """Weights of one layer's MLP."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def more_with_experts(self) -> int:
        """Weights that a token meets in a layer with experts beyond those of one with an MLP; may be negative."""
        return 0 if self.experts is None else self.experts.params(self.hidden_size) - self.mlp_params

    @property
    def kv_params(self) -> int:
        """Weights of one layer's key and value projections."""
        return self.hidden_size * 2 * self.num_kv_heads * self.head_dim

    @property
    def layer_params(self) -> int:
        """Weights of a layer of attention with an MLP: q, k, v and o projections, the output's gate, gate, up and down."""
        q_and_o = self.hidden_size * (3 if self.gated else 2) * self.num_heads * self.head_dim
        return q_and_o + self.kv_params + self.mlp_params

    @property
    def delta_params(self) -> int:
        """Weights of a layer of the delta rule; 0 where there is none."""
        if self.delta is None:
            return 0
        columns = self.delta.in_columns + self.delta.out_columns
        return self.hidden_size * columns + self.mlp_params


@dataclass(frozen=True)
class RequiredFlop:
    """Floating-point operations; `spared` is the part of linear and attention that no result depends on."""

    linear: int
    attention: int
    head: int
    spared: int
    delta_rule: int = 0

    @property
    def total(self) -> int:
        """All that counts."""
        return self.linear + self.attention + self.head + self.delta_rule

    def __add__(self, other: RequiredFlop) -> RequiredFlop:
        return RequiredFlop(
            self.linear + other.linear,
            self.attention + other.attention,
            self.head + other.head,
            self.spared + other.spared,
            self.delta_rule + other.delta_rule,
        )


NO_FLOP = RequiredFlop(0, 0, 0, 0)


def required_flop(batch: Batch, shape: ModelShape) -> RequiredFlop:
    """Of one batch under a model."""
    rows_N = np.unique(batch.rows_N)
    num_tokens, num_unscored = len(batch.token_ids_T), len(batch.token_ids_T) - len(rows_N)
    a_pair = 4 * shape.head_dim * shape.num_heads
    pairs = {window: causal_pairs(batch.positions_T, window) for window in set(shape.windows)}
    delta, spared = shape.delta, 0
    if delta is not None and delta.is_last:
        spared = 2 * (shape.delta_params - shape.hidden_size * delta.in_columns) * num_unscored
    elif shape.windows:
        scored_pairs = causal_pairs(batch.positions_T[rows_N], shape.windows[-1])
        spared = 2 * (shape.layer_params - shape.kv_params) * num_unscored
        spared += a_pair * (pairs[shape.windows[-1]] - scored_pairs)
    num_delta = 0 if delta is None else delta.num_layers
    params = shape.layer_params * len(shape.windows) + shape.delta_params * num_delta
    if shape.experts is not None:
        params += shape.more_with_experts * shape.experts.num_layers
        spared += 2 * shape.more_with_experts * num_unscored if shape.experts.is_last else 0
    return RequiredFlop(
        linear=2 * params * num_tokens,
        attention=a_pair * sum(pairs[window] for window in shape.windows),
        head=2 * shape.hidden_size * shape.vocab_size * len(rows_N),
        spared=spared,
        delta_rule=0 if delta is None else delta.a_token * num_delta * num_tokens,
    )


def causal_pairs(positions_T: IntArray, window: int | None = None) -> int:
    """Positions that tokens at these positions of their paths see: all before and themselves, or the last `window`."""
    seen_T = positions_T + 1
    return int((seen_T if window is None else np.minimum(seen_T, window)).sum())
