"""Resident weights: every layer read and prepared once, then kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from psyfast.model.load.assembly import Embedding
from psyfast.model.load.in_step import ModelsInStep
from psyfast.ops.records import HeadWeights, PreparedLayer

MAX_THREADS = 8
"""Layers prepared at once: beyond that, threads wait for one another's Python."""


def loading_threads() -> int:
    """Threads that load resident weights, each a layer at a time."""
    return min(MAX_THREADS, torch.get_num_threads())


@dataclass(frozen=True)
class ResidentWeights:
    """A model whose layers are all in memory, as their operators take them (an engine's WeightSource)."""

    embedding: Embedding
    layers: tuple[PreparedLayer, ...]
    head_weights: HeadWeights

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32."""
        return self.embedding.rows(token_ids_T)

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer's weights."""
        return self.layers[layer_idx]

    def head(self) -> HeadWeights:
        """Final norm and LM head."""
        return self.head_weights

    def close(self) -> None:
        """Nothing is under way."""


def load_resident(models: ModelsInStep) -> list[ResidentWeights]:
    """Read every layer and prepare it, for each of some models that have a base in common. Raises ModelError.

    Matrices go straight from the file into their prepared form.
    """

    def layers_of(layer_idx: int) -> list[PreparedLayer]:
        return [models.layer(layer_idx, which, num_threads=1) for which in range(models.num_models)]

    with ThreadPoolExecutor(loading_threads()) as pool:
        layers = list(pool.map(layers_of, range(models.num_layers)))
    return [
        ResidentWeights(embedding, tuple(prepared), head)
        for embedding, prepared, head in zip(
            models.embeddings(), zip(*layers, strict=True), models.heads(), strict=True
        )
    ]
