"""What a model's parts take in memory, from its traits: packed for the native operators, or as loaded for `reference`."""

from __future__ import annotations

from dataclasses import replace

import torch

from psyfast.model.traits import DeltaTraits, LayerKind, Traits
from psyfast.ops import native
from psyfast.ops.cpu_packing import BLOCK_COLUMNS, MAX_BLOCKS
from psyfast.ops.gpu.products import TEMPORARY_BYTES
from psyfast.ops.records import Lane
from psyfast.ops.reference import ROWS_A_CHUNK, ROWS_A_TILE
from psyfast.ops.reference_delta import CHUNK
from psyfast.ops.registry import Operators
from psyfast.plan.memory import ModelSizes
from psyfast.plan.windows import DEFAULT_WINDOW_SLOTS

PANEL = 64
ROW_PADDING = 16
TABLES_BYTES_A_SLOT = 64
HOST_BYTES_A_SLOT = 512
"""Ids, positions and tables of the plan, the transcripts themselves, and their rows of the results."""


def model_sizes(traits: Traits, operators: Operators, stored_bytes: int) -> ModelSizes:
    """Sizes under some operators. stored_bytes: of a weight as the fp32 lane keeps it (4, or 2 for bf16)."""
    if operators.device.type == "cuda":
        return _on_device(traits, operators.lane)
    if operators.device.type != "cpu":  # none of it is in this process's memory
        return ModelSizes(traits.num_layers, 0, 0, 0, HOST_BYTES_A_SLOT)
    return _native(traits, operators.lane) if operators.isa else _reference(traits, operators.lane, stored_bytes)


def _on_device(traits: Traits, lane: Lane) -> ModelSizes:
    """Of a GPU's memory: psyfast.ops.gpu's operators, whose intermediates come in chunks of TEMPORARY_BYTES."""
    operand = 4 if lane is Lane.FP32 else 2
    D, HE, KE = traits.hidden_size, traits.num_heads * traits.head_dim, traits.num_kv_heads * traits.head_dim
    mixed = 0 if traits.delta is None else _delta_on_device(traits.delta, operand)
    return ModelSizes(
        num_layers=traits.num_layers,
        layer_bytes=operand * traits.num_layer_params,
        head_bytes=operand * traits.vocab_size * D,
        reading_bytes=3 * TEMPORARY_BYTES,  # what a product is made from, what it makes, and its rounded result
        slot_bytes=4 * 2 * D + operand * 2 * KE + max(operand * 2 * HE, mixed) + TABLES_BYTES_A_SLOT,
    )


def sizes_together(sizes: ModelSizes, traits: Traits, num_models: int, num_heads: int, kept_bytes: int) -> ModelSizes:
    """The same for models that differ by adapters and are run in step: layers and residuals of each, and their LM heads.

    kept_bytes: of the base's values that are kept until all have read them (psyfast.model.load.shared).
    """
    return replace(
        sizes,
        layer_bytes=num_models * sizes.layer_bytes,
        head_bytes=num_heads * sizes.head_bytes,
        reading_bytes=num_models * sizes.reading_bytes + kept_bytes,
        slot_bytes=sizes.slot_bytes + (num_models - 1) * 4 * traits.hidden_size,
    )


def _native(traits: Traits, lane: Lane) -> ModelSizes:
    """Panels of whole vectors; see psyfast.ops.cpu_linear, and csrc/kv_pages.h for the pages."""
    operand = 4 if lane is Lane.FP32 else 2
    D, F, E = traits.hidden_size, _widest(traits), _up(traits.head_dim, PANEL)
    H, K = traits.num_heads, traits.num_kv_heads
    HE = H * traits.head_dim
    mixer = (H + 2 * K) * E * D + _up(D, PANEL) * HE + (_up(HE, PANEL) * D if traits.output_gate else 0)
    # While attention runs: the residual; K and V; q, its result, and one more of them that the allocator keeps.
    slot = 4 * D + operand * (2 * K * E + 3 * HE) + 8 * E
    if traits.delta is not None:
        mixer = max(mixer, _packed_delta(traits.delta, D))
        slot = max(slot, 4 * D + operand * 2 * K * E + _delta_slot(traits.delta, operand))
        HE = max(HE, traits.delta.width)
    return ModelSizes(
        num_layers=traits.num_layers,
        layer_bytes=operand * (mixer + max(_packed_mlps(traits, kind) for kind in traits.kinds)),
        head_bytes=operand * _up(traits.vocab_size, PANEL) * D,
        # of a layer, or of the head; and what experts' results take
        reading_bytes=BLOCK_COLUMNS * operand * max(3 * max(D, F, HE), 2 * MAX_BLOCKS * D) + _experts_wave(traits),
        slot_bytes=slot + HOST_BYTES_A_SLOT,
    )


def _widest(traits: Traits) -> int:
    """The largest feed-forward width of any layer."""
    return max(traits.intermediate_size, 0 if traits.experts is None else traits.experts.intermediate_size)


def _packed_mlps(traits: Traits, kind: LayerKind) -> int:
    """Packed weights of a layer's MLP, or of its router and all its experts."""
    D, experts = traits.hidden_size, traits.experts
    if kind.mlp == "dense" or experts is None:
        return _packed_mlp(D, traits.intermediate_size)
    return _up(experts.num_experts, PANEL) * D + experts.num_experts * _packed_mlp(D, experts.intermediate_size)


def _packed_mlp(D: int, F: int) -> int:
    return 2 * _up(F, PANEL // 2) * D + _up(D, PANEL) * F


def _experts_wave(traits: Traits) -> int:
    """Bytes of the experts' results that wait to be summed; see csrc/experts.cc."""
    if traits.experts is None:
        return 0
    a_slot = 4 * traits.experts.num_used * (_up(traits.hidden_size, PANEL) + ROW_PADDING)
    return min(int(native.load().EXPERTS_WAVE_BYTES), DEFAULT_WINDOW_SLOTS * a_slot)


def _packed_delta(delta: DeltaTraits, D: int) -> int:
    """Packed weights of a layer's mixer; see psyfast.ops.cpu_delta."""
    columns = delta.num_key_heads * _delta_columns(delta) + _up(2 * delta.num_value_heads, PANEL)
    return (columns + _up(delta.width, PANEL)) * D + _up(D, PANEL) * delta.width


def _delta_columns(delta: DeltaTraits) -> int:
    """Of a key head: its queries, its keys and its value heads."""
    num_values = delta.num_value_heads // delta.num_key_heads
    return 2 * _up(delta.key_dim, PANEL) + num_values * _up(delta.value_dim, PANEL)


def _delta_slot(delta: DeltaTraits, operand: int) -> int:
    """While the delta rule runs: channels of as many key heads as there are threads, decays, the output and one more."""
    heads = min(delta.num_key_heads, torch.get_num_threads())
    return 4 * (heads * _delta_columns(delta) + _up(2 * delta.num_value_heads, PANEL)) + 2 * operand * delta.width


def _reference(traits: Traits, lane: Lane, stored_bytes: int) -> ModelSizes:
    """Matrices as loaded; for the time of a product those of an operator once more, and a chunk of its rows, in fp32."""
    kept = 2 if lane is Lane.BF16 else stored_bytes
    D, F, H = traits.hidden_size, _widest(traits), traits.num_heads
    HE, KE = H * traits.head_dim, traits.num_kv_heads * traits.head_dim
    scores = 3 * ROWS_A_TILE * H  # of a tile of queries with every key: the products, the softmax, one to spare
    mixed = 0 if traits.delta is None else _delta_in_torch(traits.delta)
    return ModelSizes(
        num_layers=traits.num_layers,
        layer_bytes=kept * traits.num_layer_params,
        head_bytes=(kept + 4) * traits.vocab_size * D,
        reading_bytes=4 * (3 * D * F + ROWS_A_CHUNK * (4 * F + 5 * D)),
        slot_bytes=4 * (4 * D + 4 * KE + max(5 * HE + scores, mixed)) + HOST_BYTES_A_SLOT,
    )


def _delta_in_torch(delta: DeltaTraits) -> int:
    """Numbers a token of psyfast.ops.reference_delta: the channels before and after their filter, and in its terms; q, k and
    v of every value head; outputs; and a state a chunk, for the case that every chunk is forked from.
    """
    heads = delta.num_value_heads * (2 * delta.key_dim + delta.key_dim * delta.value_dim // CHUNK)
    return 5 * delta.num_channels + 4 * delta.width + heads


def _delta_on_device(delta: DeltaTraits, operand: int) -> int:
    """Bytes a token of psyfast.ops.gpu's delta rule: channels before and after their filter, decays in its terms, outputs, and a
    state a chunk, for the case that every chunk is forked from. What stands between its kernels is in TEMPORARY_BYTES.
    """
    H = delta.num_value_heads
    numbers = 2 * delta.num_channels + 4 * H + delta.width + H * delta.key_dim * delta.value_dim // CHUNK
    return 4 * numbers + operand * delta.width


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
