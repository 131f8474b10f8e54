"""A model whose layers stand prepared in pinned host memory and pass through two buffers on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psyfast.model.load.assembly import Assembler, Embedding
from psyfast.ops.gpu.pinned import PinnedLayers
from psyfast.ops.records import HeadWeights, PreparedLayer, Rope
from psyfast.ops.registry import Operators


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


def load_pinned(
    on_host: Sequence[Assembler], on_device: Sequence[Assembler], num_layers: int, operators: Operators
) -> list[PinnedWeights]:
    """Read every layer into host memory, prepared, for each of some models that have a base in common.

    on_host, on_device: of the same files. Raises ModelError.
    """
    prepared = [
        [operators.prepare_layer(assembler.layer(idx), num_threads=1) for assembler in on_host]
        for idx in range(num_layers)
    ]
    return [
        PinnedWeights(
            assembler.embedding(),
            PinnedLayers(_with_ropes_on(operators.device, [layers[which] for layers in prepared]), operators.device),
            assembler.head(),
        )
        for which, assembler in enumerate(on_device)
    ]


def _with_ropes_on(device: torch.device, layers: Sequence[PreparedLayer]) -> list[PreparedLayer]:
    """Layers of one rotary embedding share its record, by which a batch's tables of angles are found again."""
    moved: dict[int, Rope] = {}
    found = []
    for layer in layers:
        rope: Rope | None = None if layer.attn_in is None else layer.attn_in.rope
        if rope is not None:
            ours = moved.setdefault(id(rope), replace(rope, inv_freq=rope.inv_freq.to(device)))
            layer = replace(layer, attn_in=replace(layer.attn_in, rope=ours))
        found.append(layer)
    return found
