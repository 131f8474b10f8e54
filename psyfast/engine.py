"""The layer-major loop: all tokens of a batch go through layer 0, then layer 1 …, and only scored rows meet the head.

K and V live for one layer at a time, in pages that every layer writes anew, so memory does not depend on the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from psyfast.model.decoder import run_layer
from psyfast.model.traits import Traits
from psyfast.ops.records import HeadScores, HeadWeights, Pages, PreparedLayer, RopeTables
from psyfast.ops.registry import LinearNll, Operators
from psyfast.plan.batch import Batch
from psyfast.plan.flops import DeltaShape, ExpertShape, ModelShape
from psyfast.plan.pages import PAGE_SLOTS, PageTables


class WeightSource(Protocol):
    """Where weights come from: resident in memory, or read a layer at a time."""

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD fp32 of token ids, on the source's device."""
        ...

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer's weights, prepared by the operators, on the source's device."""
        ...

    def head(self) -> HeadWeights:
        """Final norm and LM head, on the source's device."""
        ...


class Engine:
    """A model ready to run batches: its traits, weights and resolved operators (the LM head prepared once).

    sparse=False computes every row of the last layer and of the LM head, whether it is wanted or not: the same results
    for more work, for comparison. linear_nll: of another engine with the same final norm and LM head.
    """

    def __init__(
        self,
        traits: Traits,
        weights: WeightSource,
        operators: Operators,
        *,
        sparse: bool = True,
        linear_nll: LinearNll | None = None,
    ) -> None:
        self.traits = traits
        self.operators = operators
        self.sparse = sparse
        self.weights = weights
        self.linear_nll = linear_nll or operators.make_linear_nll(weights.head())

    def run(self, batch: Batch, on_layer: Callable[[int], None] | None = None) -> HeadScores:
        """Score a batch's entries; `on_layer(i)` is called after layer i (for progress)."""
        return run_together([self], batch, on_layer)[0]


@torch.inference_mode()
def run_together(
    engines: Sequence[Engine], batch: Batch, on_layer: Callable[[int], None] | None = None
) -> list[HeadScores]:
    """Score a batch under several models of the same traits and operators, layer by layer in step, so that what they have
    in common is read once. Every engine's results are those of `Engine.run`.
    """
    first = engines[0]
    traits, operators, sparse = first.traits, first.operators, first.sparse
    num_entries = len(batch.rows_N)
    if not sparse:
        batch = with_every_row(batch)
    device = operators.device
    token_ids_T = torch.from_numpy(batch.token_ids_T).to(device)
    hidden = [engine.weights.embed(token_ids_T) for engine in engines]
    rows_N, row_of_entry = torch.from_numpy(batch.rows_N).to(device).unique(return_inverse=True)
    if len(batch.token_ids_T):
        pages = allocate_pages(batch.pages, batch.positions_T, traits, operators)
        last = traits.num_layers - 1
        for layer_idx in range(traits.num_layers):
            # Nothing depends on the last layer's other rows: only their keys and values are needed.
            wanted = rows_N if layer_idx == last and sparse else None
            for which, engine in enumerate(engines):
                hidden[which] = run_layer(hidden[which], pages, engine.weights.layer(layer_idx), operators, wanted)
            if on_layer is not None:
                on_layer(layer_idx)
    target_N, option_ids_NK = torch.from_numpy(batch.target_N), torch.from_numpy(batch.option_ids_NK)
    scores = [
        engine.linear_nll(x_TD[row_of_entry].contiguous(), target_N, option_ids_NK)
        for engine, x_TD in zip(engines, hidden, strict=True)
    ]
    return scores if sparse else [one.first(num_entries) for one in scores]


def with_every_row(batch: Batch) -> Batch:
    """The batch with an entry more for every token that has none (target 0, no options), after its own."""
    others = np.setdiff1d(np.arange(len(batch.token_ids_T)), batch.rows_N)
    return replace(
        batch,
        rows_N=np.concatenate([batch.rows_N, others]),
        target_N=np.concatenate([batch.target_N, np.zeros_like(others)]),
        option_ids_NK=np.pad(batch.option_ids_NK, ((0, len(others)), (0, 0)), constant_values=-1),
    )


def model_shape(traits: Traits) -> ModelShape:
    """The sizes that decide how many floating-point operations a batch requires."""
    return ModelShape(
        hidden_size=traits.hidden_size,
        intermediate_size=traits.intermediate_size,
        num_heads=traits.num_heads,
        num_kv_heads=traits.num_kv_heads,
        head_dim=traits.head_dim,
        vocab_size=traits.vocab_size,
        windows=tuple(kind.window for kind in traits.layers if kind.mixer == "attention"),
        gated=traits.output_gate,
        delta=_delta_shape(traits),
        experts=_expert_shape(traits),
    )


def _expert_shape(traits: Traits) -> ExpertShape | None:
    if traits.experts is None:
        return None
    with_experts = [kind.mlp == "experts" for kind in traits.layers]
    return ExpertShape(
        num_layers=sum(with_experts),
        is_last=with_experts[-1],
        num_experts=traits.experts.num_experts,
        num_used=traits.experts.num_used,
        intermediate_size=traits.experts.intermediate_size,
    )


def _delta_shape(traits: Traits) -> DeltaShape | None:
    if traits.delta is None:
        return None
    by_delta_rule = [kind.mixer == "delta_rule" for kind in traits.layers]
    return DeltaShape(
        num_layers=sum(by_delta_rule),
        is_last=by_delta_rule[-1],
        num_channels=traits.delta.num_channels,
        num_value_heads=traits.delta.num_value_heads,
        key_dim=traits.delta.key_dim,
        value_dim=traits.delta.value_dim,
    )


def allocate_pages(tables: PageTables, positions_T: np.ndarray, traits: Traits, operators: Operators) -> Pages:
    """Pages for one layer of a batch, zeroed: a masked key weighs 0, and 0 · NaN of fresh memory would not be 0."""
    device = operators.device
    k, v = operators.allocate_kv(tables.num_pages, PAGE_SLOTS, traits.num_kv_heads, traits.head_dim)
    page_index = np.zeros(tables.num_pages, np.int64)
    first_of_path = np.repeat(tables.kv_indptr[:-1], np.diff(tables.kv_indptr))
    page_index[tables.kv_indices] = np.arange(len(tables.kv_indices)) - first_of_path

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Pages(
        k=k,
        v=v,
        slots_T=on_device(tables.slots_T),
        positions_T=on_device(positions_T),
        qo_indptr=on_device(tables.qo_indptr),
        kv_indptr=on_device(tables.kv_indptr),
        kv_indices=on_device(tables.kv_indices),
        page_index_P=on_device(page_index),
        copy_from=on_device(tables.copy_from),
        copy_to=on_device(tables.copy_to),
        copy_runs_R4=on_device(tables.copy_runs),
        rope_tables=RopeTables(int(positions_T.max()) + 1 if len(positions_T) else 0),
    )
