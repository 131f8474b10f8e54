"""A model whose layers stand prepared in pinned host memory and pass through two buffers on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from psyfast.model.load.assembly import Embedding
from psyfast.model.load.in_step import ModelsInStep
from psyfast.ops.gpu.pinned import PinnedLayers, pinned_together
from psyfast.ops.records import HeadWeights, PreparedLayer, Rope


@dataclass(frozen=True)
class PinnedWeights:
    """An engine's WeightSource; everything but the layers' matrices is on the device."""

    embedding: Embedding
    layers: PinnedLayers
    head_weights: HeadWeights

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32."""
        return self.embedding.rows(token_ids_T)

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer's weights, in memory that holds until the next one is asked for."""
        return self.layers.layer(layer_idx)

    def head(self) -> HeadWeights:
        """Final norm and LM head."""
        return self.head_weights

    def close(self) -> None:
        """Wait for what is on its way."""
        self.layers.close()


def load_pinned(on_host: ModelsInStep, on_device: ModelsInStep, device: torch.device) -> list[PinnedWeights]:
    """Read every layer into host memory, prepared, for each of some models that have a base in common.

    on_host, on_device: of the same files. Raises ModelError.
    """
    layers = [
        [on_host.layer(idx, which, num_threads=1) for which in range(on_host.num_models)]
        for idx in range(on_host.num_layers)
    ]
    moved: dict[int, Any] = {}
    models = [[_with_rope_on(device, layer, moved) for layer in of_one] for of_one in zip(*layers, strict=True)]
    return [
        PinnedWeights(embedding, source, head)
        for embedding, source, head in zip(
            on_device.embeddings(), pinned_together(models, device), on_device.heads(), strict=True
        )
    ]


def _with_rope_on(device: torch.device, layer: PreparedLayer, moved: dict[int, Any]) -> PreparedLayer:
    """Layers of one rotary embedding share its record, by which a batch's tables of angles are found again.

    moved: by the identity of what was moved, which must not change meanwhile: layers that have a part in common go on having it.
    """
    attn_in = layer.attn_in
    rope: Rope | None = None if attn_in is None else attn_in.rope
    if rope is None:
        return layer
    ours = moved.setdefault(id(rope), replace(rope, inv_freq=rope.inv_freq.to(device)))
    return replace(layer, attn_in=moved.setdefault(id(attn_in), replace(attn_in, rope=ours)))
