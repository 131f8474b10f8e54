"""A model's shapes with random weights: what the engine needs, without a file. A few layers' weights serve all layers.

A layer of a real size is several times the L2 cache, so that a layer finds nothing left of the one before, its own or not.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from psyfast.model.traits import Traits
from psyfast.ops.gpu.pinned import PinnedLayers
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    HeadWeights,
    LayerWeights,
    MlpWeights,
    Norm,
    PreparedLayer,
    Rope,
)
from psyfast.ops.registry import Operators
from psyfast.plan.batch import Branch, Request

DISTINCT_LAYERS = 4


class RandomModel:
    """Weights in bf16 on a device. embedding_VD serves as LM head, too, where the model ties them."""

    def __init__(self, traits: Traits, device: torch.device) -> None:
        self.traits, self.device = traits, device
        self.rope = Rope(traits.rope.inv_freq(traits.head_dim).to(device), traits.rope.attention_scale)
        self.embedding_VD = self._matrix(traits.vocab_size, traits.hidden_size)
        self.lm_head_VD = self.embedding_VD if traits.tied_head else self._matrix(traits.vocab_size, traits.hidden_size)
        self.final_norm = self._norm(traits.hidden_size)
        self.layers = [self._layer() for _ in range(min(DISTINCT_LAYERS, traits.num_layers))]

    def layer(self, layer_idx: int) -> LayerWeights:
        """Layer i has the weights of layer i mod 4."""
        return self.layers[layer_idx % len(self.layers)]

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32, of unit size."""
        return self.embedding_VD[token_ids_T].float() * math.sqrt(self.traits.hidden_size)

    def head(self) -> HeadWeights:
        """Final norm and LM head."""
        return HeadWeights(self.final_norm, self.lm_head_VD)

    def _matrix(self, rows: int, inner: int) -> Tensor:
        """Keeps the size of what it multiplies."""
        made = torch.empty(rows, inner, dtype=torch.bfloat16, device=self.device)
        return made.normal_(0.0, inner**-0.5)

    def _norm(self, width: int) -> Norm:
        return Norm(torch.rand(width, device=self.device) + 0.5, self.traits.norm_eps)

    def _layer(self) -> LayerWeights:
        t = self.traits
        q_norm, k_norm = (self._norm(t.head_dim) if t.qk_norm else None for _ in range(2))
        width = t.num_heads * t.head_dim
        return LayerWeights(
            attn_in=AttnInWeights(
                norm=self._norm(t.hidden_size),
                qkv_proj=self._matrix(width + 2 * t.num_kv_heads * t.head_dim, t.hidden_size),
                bias=None,
                num_heads=t.num_heads,
                num_kv_heads=t.num_kv_heads,
                head_dim=t.head_dim,
                rope=self.rope,
                q_norm=q_norm,
                k_norm=k_norm,
            ),
            attention=AttentionParams(t.attention_scale),
            attn_out=AttnOutWeights(self._matrix(t.hidden_size, width)),
            mlp=MlpWeights(
                self._norm(t.hidden_size),
                self._matrix(2 * t.intermediate_size, t.hidden_size),
                self._matrix(t.hidden_size, t.intermediate_size),
            ),
        )


class ResidentWeights:
    """A random model as an engine's WeightSource, its layers prepared once by the operators."""

    def __init__(self, model: RandomModel, operators: Operators) -> None:
        self._model = model
        self._prepared: list[PreparedLayer] = [operators.prepare_layer(layer) for layer in model.layers]

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD."""
        return self._model.embed(token_ids_T)

    def layer(self, layer_idx: int) -> PreparedLayer:
        """As prepared."""
        return self._prepared[layer_idx % len(self._prepared)]

    def head(self) -> HeadWeights:
        """As it is."""
        return self._model.head()


class StreamedWeights(ResidentWeights):
    """The same with layers in pinned host memory, which pass through two buffers on the device."""

    def __init__(self, model: RandomModel, operators: Operators) -> None:
        super().__init__(model, operators)
        layers = [self._prepared[i % len(self._prepared)] for i in range(model.traits.num_layers)]
        self._prepared = []
        self._pinned = PinnedLayers(layers, model.device)

    def layer(self, layer_idx: int) -> PreparedLayer:
        """As prepared, on the device until the next is asked for."""
        return self._pinned.layer(layer_idx)

    def close(self) -> None:
        """Let go of the memory."""
        self._pinned.close()


def transcripts(num_tokens: int, vocab_size: int, seed: int, *, trunk: int = 3000) -> list[Request]:
    """Caterpillars of about so many tokens in all: a response of 2 tokens every 40, another option of it as a branch."""
    rng = np.random.default_rng(seed)
    trunk = min(trunk, num_tokens)
    count = max(1, num_tokens * 20 // (21 * trunk))
    found = []
    for _ in range(count):
        ids = rng.integers(0, vocab_size, trunk)
        starts = np.arange(20, trunk - 3, 40)
        branches = tuple(Branch(int(s), rng.integers(0, vocab_size, 3), int(s), int(s) + 3) for s in starts)
        found.append(Request(ids, np.sort(np.concatenate([starts, starts + 1])), branches))
    return found
