"""What distinguishes one decoder from another, as data: a family is a row of traits, not a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from psyfast.model.rope import RopeTraits

__all__ = ["DeltaTraits", "ExpertTraits", "LayerKind", "Norms", "RopeTraits", "Traits"]

Norms = Literal["before", "after", "around"]
"""Where a layer's norms stand: before attention and MLP, after each (before it is added to the residual), or both."""


@dataclass(frozen=True)
class LayerKind:
    """What a model's layers may differ in: their rotary embedding (None: none), and how many positions they see.

    window: the last so many, the token itself included; None: all. mixer: how tokens reach one another. mlp: one for all
    tokens, or experts.
    """

    rope: RopeTraits | None
    window: int | None = None
    mixer: Literal["attention", "delta_rule"] = "attention"
    mlp: Literal["dense", "experts"] = "dense"


@dataclass(frozen=True)
class DeltaTraits:
    """Sizes of the layers that mix by the gated delta rule. conv_width: positions of their short convolution."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int

    @property
    def num_channels(self) -> int:
        """Columns of the projection to queries, keys and values."""
        return 2 * self.num_key_heads * self.key_dim + self.width

    @property
    def width(self) -> int:
        """Columns of the output, which are also those of its gate."""
        return self.num_value_heads * self.value_dim


@dataclass(frozen=True)
class ExpertTraits:
    """The experts of a layer: how many there are, how many a token uses, and the feed-forward width of each.

    normalised: the weights of a token's experts sum to one. biases: of the router and of every expert's projections.
    """

    num_experts: int
    num_used: int
    intermediate_size: int
    normalised: bool
    biases: bool = False

    def num_params(self, hidden_size: int) -> int:
        """Weights of all of a layer's experts and of their router."""
        return hidden_size * self.num_experts * (3 * self.intermediate_size + 1)


@dataclass(frozen=True)
class Traits:
    """Everything about a decoder's shape and equations that its weights do not say themselves.

    num_layers: those that are run; stored_layers: the number of each in the files, skipped_layers: numbers there that are
    not run (a vision model's cross-attention). rope: of layers that see everything; kinds: the kinds of layer there are,
    kind_of_layer: which of them each layer is; not given: all alike, one after the other. attention_scale: of the
    scores; not given: 1 / sqrt(head_dim). The soft caps bend scores and logits (None: not bent). qk_norm: queries and keys are normalised a
    head at a time, or all heads together. fused: q, k and v are stored in one matrix, gate and up in another.
    num_extra_rows: of the embedding, beyond the vocabulary, for tokens that no text has. output_gate: attention's output
    is multiplied by a sigmoid of the layer's input, whose projection is stored with the queries'. delta: of the layers
    that mix by the delta rule, experts: of the layers that have some; None where there are none. sinks: every head has a
    logit that takes part in the softmax and carries no value.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: RopeTraits
    kinds: tuple[LayerKind, ...] = ()
    kind_of_layer: tuple[int, ...] = ()
    stored_layers: tuple[int, ...] = ()
    attention_scale: float = 0.0
    norms: Norms = "before"
    unit_offset: bool = False
    qk_norm: Literal["head", "projection"] | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    activation: str = "silu"
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    embedding_scale: float = 1.0
    num_extra_rows: int = 0
    fused: bool = False
    skipped_layers: tuple[int, ...] = ()
    tied_head: bool = False
    output_gate: bool = False
    delta: DeltaTraits | None = None
    experts: ExpertTraits | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        """Fill in what a decoder of layers alike need not say."""
        given = {
            "kinds": self.kinds or (LayerKind(self.rope),),
            "kind_of_layer": self.kind_of_layer or (0,) * self.num_layers,
            "stored_layers": self.stored_layers or tuple(range(self.num_layers)),
            "attention_scale": self.attention_scale or self.head_dim**-0.5,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)
        assert len(self.kind_of_layer) == len(self.stored_layers) == self.num_layers

    @property
    def num_layer_params(self) -> int:
        """Weights of a layer's matrices, of the kind that has the most."""
        return max(self.num_mixer_params(kind) + self.num_mlp_params(kind) for kind in self.kinds)

    def num_mlp_params(self, kind: LayerKind) -> int:
        """Weights of a kind's MLP, or of all its experts and their router."""
        if kind.mlp == "experts":
            assert self.experts is not None
            return self.experts.num_params(self.hidden_size)
        return 3 * self.hidden_size * self.intermediate_size

    def num_mixer_params(self, kind: LayerKind) -> int:
        """Weights of the matrices by which a kind of layer mixes tokens, its output projection included."""
        if kind.mixer == "delta_rule":
            assert self.delta is not None
            columns = self.delta.num_channels + 2 * self.delta.width + 2 * self.delta.num_value_heads
            return self.hidden_size * columns
        heads = (3 if self.output_gate else 2) * self.num_heads + 2 * self.num_kv_heads
        return self.hidden_size * heads * self.head_dim

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """Each layer's kind."""
        return tuple(self.kinds[kind] for kind in self.kind_of_layer)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's window."""
        return tuple(kind.window for kind in self.layers)
