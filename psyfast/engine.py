"""The layer-major loop: all tokens of a batch go through layer 0, then layer 1 …, and only scored rows meet the head.

K and V live for one layer at a time, in pages that every layer writes anew, so memory does not depend on the depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from psyfast.model.decoder import run_layer
from psyfast.model.traits import Traits
from psyfast.ops.records import HeadScores, HeadWeights, Lane, LayerWeights, Pages
from psyfast.ops.registry import Operators
from psyfast.plan.batch import Batch
from psyfast.plan.pages import PAGE_SLOTS, PageTables


class WeightSource(Protocol):
    """Where weights come from: resident in memory, or read a layer at a time."""

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD fp32 of token ids, on the source's device."""
        ...

    def layer(self, layer_idx: int) -> LayerWeights:
        """One layer's weights, on the source's device."""
        ...

    def head(self) -> HeadWeights:
        """Final norm and LM head, on the source's device."""
        ...


class Engine:
    """A model ready to run batches: its traits, weights and resolved operators (the LM head packed once)."""

    def __init__(self, traits: Traits, weights: WeightSource, operators: Operators) -> None:
        self.traits = traits
        self.operators = operators
        self._weights = weights
        self._linear_nll = operators.make_linear_nll(weights.head())

    @torch.inference_mode()
    def run(self, batch: Batch, on_layer: Callable[[int], None] | None = None) -> HeadScores:
        """Score a batch's entries; `on_layer(i)` is called after layer i (for progress)."""
        device = self.operators.device
        x_TD = self._weights.embed(torch.from_numpy(batch.token_ids_T).to(device))
        pages = allocate_pages(batch.pages, batch.positions_T, self.traits, self.operators)
        if len(batch.token_ids_T):
            for layer_idx in range(self.traits.num_layers):
                run_layer(x_TD, pages, self._weights.layer(layer_idx), self.operators)
                if on_layer is not None:
                    on_layer(layer_idx)
        x_ND = x_TD[torch.from_numpy(batch.rows_N).to(device)].contiguous()
        return self._linear_nll(x_ND, torch.from_numpy(batch.target_N), torch.from_numpy(batch.option_ids_NK))


def bytes_a_slot(traits: Traits) -> int:
    """Memory that a page slot of a batch takes: residual, query, result, temporaries of each, K and V, in fp32."""
    heads, kv = traits.num_heads * traits.head_dim, traits.num_kv_heads * traits.head_dim
    return 4 * (4 * traits.hidden_size + 3 * heads + 4 * kv)


def allocate_pages(tables: PageTables, positions_T: np.ndarray, traits: Traits, operators: Operators) -> Pages:
    """Pages for one layer of a batch, zeroed: a masked key weighs 0, and 0 · NaN of fresh memory would not be 0."""
    device = operators.device
    shape = (tables.num_pages, PAGE_SLOTS, traits.num_kv_heads, traits.head_dim)
    dtype = torch.bfloat16 if operators.lane is Lane.BF16 else torch.float32
    page_index = np.zeros(tables.num_pages, np.int64)
    for start, stop in zip(tables.kv_indptr[:-1], tables.kv_indptr[1:], strict=True):
        page_index[tables.kv_indices[start:stop]] = np.arange(stop - start)

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Pages(
        k_PSKE=torch.zeros(shape, dtype=dtype, device=device),
        v_PSKE=torch.zeros(shape, dtype=dtype, device=device),
        slots_T=on_device(tables.slots_T),
        positions_T=on_device(positions_T),
        qo_indptr=on_device(tables.qo_indptr),
        kv_indptr=on_device(tables.kv_indptr),
        kv_indices=on_device(tables.kv_indices),
        page_index_P=on_device(page_index),
        copy_from=on_device(tables.copy_from),
        copy_to=on_device(tables.copy_to),
    )
