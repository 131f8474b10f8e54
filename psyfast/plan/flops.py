"""Required floating-point operations of a batch: what a share of the machine's peak is a share of.

    linear      2 · weights of the layers' matrices, for every token
    attention   4 · head size · query heads · pairs of a token and a position it sees, itself included, in every layer
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
class ModelShape:
    """A decoder's sizes, as far as its products depend on them. windows: one a layer, None for a layer that sees all."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    windows: tuple[int | None, ...]

    @property
    def kv_params(self) -> int:
        """Weights of one layer's key and value projections."""
        return self.hidden_size * 2 * self.num_kv_heads * self.head_dim

    @property
    def layer_params(self) -> int:
        """Weights of one layer's matrices: q and o projections, k and v, gate, up and down."""
        q_and_o = self.hidden_size * 2 * self.num_heads * self.head_dim
        return q_and_o + self.kv_params + 3 * self.hidden_size * self.intermediate_size


@dataclass(frozen=True)
class RequiredFlop:
    """Floating-point operations; `spared` is the part of linear and attention that no result depends on."""

    linear: int
    attention: int
    head: int
    spared: int

    @property
    def total(self) -> int:
        """All that counts."""
        return self.linear + self.attention + self.head

    def __add__(self, other: RequiredFlop) -> RequiredFlop:
        return RequiredFlop(
            self.linear + other.linear,
            self.attention + other.attention,
            self.head + other.head,
            self.spared + other.spared,
        )


NO_FLOP = RequiredFlop(0, 0, 0, 0)


def required_flop(batch: Batch, shape: ModelShape) -> RequiredFlop:
    """Of one batch under a model."""
    rows_N = np.unique(batch.rows_N)
    num_tokens, num_unscored = len(batch.token_ids_T), len(batch.token_ids_T) - len(rows_N)
    a_pair = 4 * shape.head_dim * shape.num_heads
    pairs = {window: causal_pairs(batch.positions_T, window) for window in set(shape.windows)}
    spared = 0
    if shape.windows:
        scored_pairs = causal_pairs(batch.positions_T[rows_N], shape.windows[-1])
        spared = 2 * (shape.layer_params - shape.kv_params) * num_unscored
        spared += a_pair * (pairs[shape.windows[-1]] - scored_pairs)
    return RequiredFlop(
        linear=2 * shape.layer_params * len(shape.windows) * num_tokens,
        attention=a_pair * sum(pairs[window] for window in shape.windows),
        head=2 * shape.hidden_size * shape.vocab_size * len(rows_N),
        spared=spared,
    )


def causal_pairs(positions_T: IntArray, window: int | None = None) -> int:
    """Positions that tokens at these positions of their paths see: all before and themselves, or the last `window`."""
    seen_T = positions_T + 1
    return int((seen_T if window is None else np.minimum(seen_T, window)).sum())
