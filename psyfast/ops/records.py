"""What goes in and out of the operators: frozen records with shapes in their names.

T tokens, N scored rows, D hidden, V vocabulary, H query heads, K kv heads (or option columns), E head dimension.

Every backend's operators take and return these; DESIGN's table of the operators is their contract.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor


class Lane(str, Enum):
    """Arithmetic of the matrix products: the type of the packed operands; sums are fp32 in both."""

    FP32 = "fp32"
    BF16 = "bf16"


@dataclass(frozen=True)
class DeferredMatrix:
    """A matrix [rows, columns] that is read when it is wanted: what is packed need not be in memory as stored, too.

    read(start, stop): those rows in `dtype`, contiguous.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    read: Callable[[int, int], Tensor]


Matrix = Tensor | DeferredMatrix


def in_memory(matrix: Matrix) -> Tensor:
    """The whole matrix."""
    return matrix if isinstance(matrix, Tensor) else matrix.read(0, matrix.shape[0])


@dataclass(frozen=True)
class Norm:
    """RMSNorm: x / sqrt(mean(x²) + eps) · (weight + 1 if unit_offset else weight)."""

    weight_D: Tensor
    eps: float
    unit_offset: bool = False


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of a layer: dimension pair i of a position turns by position · inv_freq[i] (halves paired).

    inv_freq: the rotated pairs' frequencies after scaling; fewer pairs than half a head leave the rest as they are.
    attention_scale multiplies cos and sin (yarn's temperature; 1 elsewhere).
    """

    inv_freq: Tensor
    attention_scale: float = 1.0


class RopeTables:
    """cos and sin of a batch's positions for each rotary embedding in use: computed at the first call, then kept."""

    def __init__(self, num_positions: int) -> None:
        self.num_positions = num_positions
        self._tables: list[tuple[Rope, Tensor, Tensor]] = []

    def cos_sin(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """[num_positions, pairs] each, fp32, attention_scale included; angles in fp32 as the models were trained."""
        for known, cos, sin in self._tables:
            if known is rope:
                return cos, sin
        positions = torch.arange(self.num_positions, device=rope.inv_freq.device).to(rope.inv_freq.dtype)
        angles = positions[:, None] * rope.inv_freq
        cos, sin = angles.cos() * rope.attention_scale, angles.sin() * rope.attention_scale
        self._tables.append((rope, cos, sin))
        return cos, sin


@dataclass(frozen=True)
class AttnInWeights:
    """Norm, fused projection [(H + 2K)·E, D] of queries, keys and values (in this order), its bias, norms of q and k.

    norm_heads_together: q_norm and k_norm are of a row's query heads (weight [H·E]) and key heads [K·E] as a whole; else
    of each head alone [E]. Without a norm x is projected as it is.
    """

    norm: Norm | None
    qkv_proj: Matrix
    bias: Tensor | None
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    norm_heads_together: bool = False


@dataclass(frozen=True)
class AttentionParams:
    """How scores are formed: q·k · scale, bent to ±soft_cap, over the last `window` positions, with a sink a head.

    A sink is a logit that takes part in the softmax and carries no value.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks_H: Tensor | None = None


@dataclass(frozen=True)
class OutputGate:
    """What an output projection's input is multiplied by: activation(norm(x) · projᵀ), x [T, D] the layer's input.

    proj: [H·E, D]. activation: `sigmoid`, or `silu`.
    """

    norm: Norm | None
    proj: Matrix
    activation: str


@dataclass(frozen=True)
class AttnOutWeights:
    """Output projection [D, H·E], its bias, a norm of its result before it is added to the residual, a gate of its input."""

    o_proj: Matrix
    bias: Tensor | None = None
    post_norm: Norm | None = None
    gate: OutputGate | None = None


@dataclass(frozen=True)
class DeltaRuleWeights:
    """A gated delta-net's mixing of tokens (Yang et al. 2025), up to the gate of its output, which is `attn_out`'s.

    Letters of its own: K heads of keys with E dimensions each, H heads of values with V; each key head serves H / K
    value heads, one after the other. qkv_proj: [2·K·E + H·V, D], queries, keys and values. conv_CW: a causal filter of W
    positions for each of the projection's C channels, the last tap the position itself. decay_write_proj: [2·H, D], a
    and then b, of log decay = −exp(log_rate_H) · softplus(a + time_bias_H) and write strength = sigmoid(b). head_norm: of a
    value head's output, [V].
    """

    norm: Norm | None
    qkv_proj: Matrix
    decay_write_proj: Matrix
    conv_CW: Tensor
    log_rate_H: Tensor
    time_bias_H: Tensor
    head_norm: Norm
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_channels(self) -> int:
        """C = 2·K·E + H·V."""
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim


@dataclass(frozen=True)
class MlpWeights:
    """Norm or none, fused gate and up projection [2F, D] (gate first), down projection [D, F], activation, post-norm."""

    norm: Norm | None
    gate_up_proj: Matrix
    down_proj: Matrix
    activation: str = "silu"
    post_norm: Norm | None = None


@dataclass(frozen=True)
class ExpertsWeights:
    """Many MLPs of which a router [X, D] chooses num_used for each token: gate_up_proj [2F, D] and down_proj [D, F] of each.

    normalised: a token's weights sum to one; else they are its experts' shares of the softmax over all X. Biases: of the
    router [X], of gate and up [X, 2F], of the down projection [X, D]. activation: a name of ACTIVATIONS, of the gate alone,
    or `clamped_swiglu`.
    """

    norm: Norm | None
    router: Matrix
    gate_up_proj: tuple[Matrix, ...]
    down_proj: tuple[Matrix, ...]
    num_used: int
    normalised: bool
    activation: str = "silu"
    router_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """Everything one decoder layer needs.

    It mixes tokens by attention or, where attn_in is None, by the delta rule; then comes an MLP or, where that is None,
    experts.
    """

    attn_in: AttnInWeights | None
    attention: AttentionParams | None
    attn_out: AttnOutWeights
    mlp: MlpWeights | None
    delta_rule: DeltaRuleWeights | None = None
    experts: ExpertsWeights | None = None


NOTHING_READY: Mapping[str, Any] = {}


@dataclass(frozen=True)
class PreparedLayer:
    """A layer's weights in the form that a backend's operators take: as they are, or packed."""

    attn_in: Any
    attention: AttentionParams | None
    attn_out: Any
    mlp: Any
    delta_rule: Any = None
    experts: Any = None

    @classmethod
    def as_loaded(
        cls, layer: LayerWeights, num_threads: int | None = None, ready: Mapping[str, Any] = NOTHING_READY
    ) -> PreparedLayer:
        """The weights as they are, all in memory, for a backend that takes them so (num_threads: there is no work)."""

        def part(name: str) -> Any:
            weights = getattr(layer, name)
            return ready.get(name) if weights is None or name in ready else _in_memory(weights)

        return cls(
            attn_in=part("attn_in"),
            attention=layer.attention,
            attn_out=part("attn_out"),
            mlp=part("mlp"),
            delta_rule=part("delta_rule"),
            experts=part("experts"),
        )


_Record = TypeVar("_Record", AttnInWeights, OutputGate, AttnOutWeights, MlpWeights, DeltaRuleWeights, ExpertsWeights)


def _in_memory(record: _Record) -> _Record:
    """The record with its deferred matrices read."""
    read: dict[str, Any] = {}
    for part in fields(record):
        value = getattr(record, part.name)
        if isinstance(value, DeferredMatrix):
            read[part.name] = in_memory(value)
        elif isinstance(value, tuple):
            read[part.name] = tuple(in_memory(matrix) for matrix in value)
        elif isinstance(value, OutputGate):
            read[part.name] = _in_memory(value)
    return replace(record, **read)


@dataclass(frozen=True)
class Pages:
    """K and V of one layer for a whole batch, with the CSR tables (see psyfast.plan.pages), on the device.

    k, v: in the layout of the backend whose `attn_in` and `attention` share them. `reference`: [pages, slots a page,
    kv heads, head_dim] in the lane's operand type; `cpu`: see csrc/kv_pages.h. Tables are int64 tensors; page_index_P
    is each page's place in its path (its first position / slots a page). copy_runs_R4: the copies once more, as runs of
    slots (page from, page to, first slot, slot after the last). rope_tables: angles, computed once a batch. derived: what
    a backend computes from the tables once a batch, under its own keys.
    """

    k: Tensor
    v: Tensor
    slots_T: Tensor
    positions_T: Tensor
    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    page_index_P: Tensor
    copy_from: Tensor
    copy_to: Tensor
    copy_runs_R4: Tensor
    rope_tables: RopeTables
    derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def at(self, rows_N: Tensor) -> Pages:
        """The same keys and values, queried by some tokens alone: rows_N, ascending indices into the batch's tokens."""
        return replace(
            self,
            positions_T=self.positions_T[rows_N],
            qo_indptr=torch.searchsorted(rows_N, self.qo_indptr).contiguous(),
            derived={},
        )


@dataclass(frozen=True)
class HeadWeights:
    """Final norm and LM head; `scale` multiplies the logits, `soft_cap` c bends them to c·tanh(logit / c)."""

    norm: Norm
    lm_head_VD: Matrix
    scale: float = 1.0
    soft_cap: float | None = None


@dataclass(frozen=True)
class HeadScores:
    """What `linear_nll` returns for N scored rows with K option columns, on the CPU.

    nll_N: fp32, lse_v(logit) − logit[target], in nats. argmax_N: int64, the lowest id among the largest logits.
    rank_N: int64, number of tokens with a larger logit, or an equal one and a lower id than the target's.
    entropy_N: fp32, −Σ p ln p in nats. option_nll_NK: fp32, NaN where option_ids_NK is −1. A row whose logits hold a
    NaN or +inf has NaN nll and entropy, and −1 for argmax and rank.
    """

    nll_N: Tensor
    argmax_N: Tensor
    rank_N: Tensor
    entropy_N: Tensor
    option_nll_NK: Tensor

    def first(self, count: int) -> HeadScores:
        """Those of the first rows alone."""
        return HeadScores(
            self.nll_N[:count],
            self.argmax_N[:count],
            self.rank_N[:count],
            self.entropy_N[:count],
            self.option_nll_NK[:count],
        )
