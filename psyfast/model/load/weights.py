"""Resident weights: every layer read and prepared once, then kept."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from psyfast.model.load.assembly import Assembler, Embedding
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.traits import Traits
from psyfast.ops.records import HeadWeights, Lane, PreparedLayer

MAX_THREADS = 8
"""Layers prepared at once: beyond that, threads wait for one another's Python."""


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


def load_resident(
    files: TensorFiles,
    traits: Traits,
    lane: Lane,
    device: torch.device,
    where: str,
    prepare_layer: Callable[..., PreparedLayer] = PreparedLayer.as_loaded,
) -> ResidentWeights:
    """Check a whole model, read its layers and prepare each. Raises ModelError.

    prepare_layer: of the operators that will run it. Matrices go straight from the file into their prepared form.
    """
    assembler = Assembler(files, traits, lane, device, where)
    num_threads = min(MAX_THREADS, torch.get_num_threads())
    with ThreadPoolExecutor(num_threads) as pool:
        layers = pool.map(lambda idx: prepare_layer(assembler.layer(idx), num_threads=1), range(traits.num_layers))
        prepared = tuple(layers)
    return ResidentWeights(
        embedding=assembler.embedding(),
        layers=prepared,
        head_weights=assembler.head(),
    )
