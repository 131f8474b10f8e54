"""What a model's parts take in memory, from its traits: packed for the native operators, or as loaded for `reference`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Together:
    """Models that differ by adapters and are run in step. num_heads: different LM heads that they have between them.

    copies: of each layer's parts, all models' together (psyfast.model.load.layer_parts). kept_bytes: of the base's values, in
    this process, while a layer is prepared (psyfast.model.load.shared).
    """

    num_models: int
    num_heads: int
    copies: Sequence[Mapping[str, int]]
    kept_bytes: int


def model_sizes(
    traits: Traits, operators: Operators, stored_bytes: int, together: Together | None = None
) -> ModelSizes:
    """Sizes under some operators. stored_bytes: of a weight as the fp32 lane keeps it (4, or 2 for bf16). together: of all
    these models at once, their layers, residuals and LM heads.
    """
    sizes = _sizes(traits, operators, stored_bytes)
    if together is None or together.num_models == 1 or operators.device.type not in ("cpu", "cuda"):
        return sizes
    per_number = _bytes_per_number(operators, stored_bytes)
    up = _up if operators.isa else _as_it_is
    parts = {kind: _part_numbers(traits, kind, up) for kind in traits.kinds}
    layer_bytes = [
        per_number * sum(numbers * copies[part] for part, numbers in parts[kind].items())
        for kind, copies in zip(traits.layers, together.copies, strict=True)
    ]
    if operators.device.type == "cuda":  # there each model has buffers of its own, for the layer in use and the next
        sizes = replace(sizes, layer_bytes=together.num_models * sizes.layer_bytes)
    return replace(
        sizes,
        all_layers_bytes=sum(layer_bytes),
        ahead_bytes=sizes.layer_bytes if operators.device.type == "cuda" else max(layer_bytes),
        kept_bytes=together.kept_bytes,
        head_bytes=together.num_heads * sizes.head_bytes,
        slot_bytes=sizes.slot_bytes + (together.num_models - 1) * 4 * traits.hidden_size,
    )


def numbers_together(traits: Traits, together: Together) -> int:
    """Of the matrices of all layers of models in step."""
    return sum(
        numbers * copies[part]
        for kind, copies in zip(traits.layers, together.copies, strict=True)
        for part, numbers in _part_numbers(traits, kind, _as_it_is).items()
    )


def _sizes(traits: Traits, operators: Operators, stored_bytes: int) -> ModelSizes:
    if operators.device.type == "cuda":
        return _on_device(traits, operators.lane)
    if operators.device.type != "cpu":  # none of it is in this process's memory
        return ModelSizes(traits.num_layers, 0, 0, 0, HOST_BYTES_A_SLOT)
    return _native(traits, operators.lane) if operators.isa else _reference(traits, operators.lane, stored_bytes)


def _bytes_per_number(operators: Operators, stored_bytes: int) -> int:
    """Of a prepared matrix."""
    if operators.lane is Lane.BF16:
        return 2
    return 4 if operators.isa or operators.device.type == "cuda" else stored_bytes


def _part_numbers(traits: Traits, kind: LayerKind, up: Callable[[int, int], int]) -> dict[str, int]:
    """Numbers of a layer's matrices by part. up(size, multiple): the size as it is padded."""
    D, E = traits.hidden_size, up(traits.head_dim, PANEL)
    mlp = _mlp_numbers(traits, kind, up)
    if kind.mixer == "delta_rule":
        assert traits.delta is not None
        delta, width = traits.delta, traits.delta.width
        columns = delta.num_key_heads * _delta_columns(delta, up) + up(2 * delta.num_value_heads, PANEL)
        attn_out = up(D, PANEL) * width + up(width, PANEL) * D
        return {"delta_rule": columns * D, "attn_out": attn_out, **mlp}
    HE = traits.num_heads * traits.head_dim
    attn_out = up(D, PANEL) * HE + (up(HE, PANEL) * D if traits.output_gate else 0)
    return {"attn_in": (traits.num_heads + 2 * traits.num_kv_heads) * E * D, "attn_out": attn_out, **mlp}


def _mlp_numbers(traits: Traits, kind: LayerKind, up: Callable[[int, int], int]) -> dict[str, int]:
    """Of a layer's MLP, or of its router and all its experts."""
    D, experts = traits.hidden_size, traits.experts

    def numbers(F: int) -> int:
        return 2 * up(F, PANEL // 2) * D + up(D, PANEL) * F

    if kind.mlp == "dense" or experts is None:
        return {"mlp": numbers(traits.intermediate_size)}
    return {"experts": up(experts.num_experts, PANEL) * D + experts.num_experts * numbers(experts.intermediate_size)}


def _largest_layer(traits: Traits, up: Callable[[int, int], int]) -> int:
    """Numbers of a layer's matrices, of the kind that has the most."""
    return max(sum(_part_numbers(traits, kind, up).values()) for kind in traits.kinds)


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


def _native(traits: Traits, lane: Lane) -> ModelSizes:
    """Panels of whole vectors; see psyfast.ops.cpu_linear, and csrc/kv_pages.h for the pages."""
    operand = 4 if lane is Lane.FP32 else 2
    D, F, E = traits.hidden_size, _widest(traits), _up(traits.head_dim, PANEL)
    H, K = traits.num_heads, traits.num_kv_heads
    HE, threads = H * traits.head_dim, min(MAX_BLOCKS, torch.get_num_threads())
    # While attention runs: the residual; K and V; q, its result, and one more of them that the allocator keeps.
    slot = 4 * D + operand * (2 * K * E + 3 * HE) + 8 * E
    if traits.delta is not None:
        slot = max(slot, 4 * D + operand * 2 * K * E + _delta_slot(traits.delta, operand))
        HE = max(HE, traits.delta.width)
    return ModelSizes(
        num_layers=traits.num_layers,
        layer_bytes=operand * _largest_layer(traits, _up),
        head_bytes=operand * _up(traits.vocab_size, PANEL) * D,
        # of a layer, or of the head; and what experts' results take
        reading_bytes=BLOCK_COLUMNS * operand * max(3 * threads * max(D, F, HE), 2 * MAX_BLOCKS * D)
        + _experts_wave(traits),
        slot_bytes=slot + HOST_BYTES_A_SLOT,
    )


def _widest(traits: Traits) -> int:
    """The largest feed-forward width of any layer."""
    return max(traits.intermediate_size, 0 if traits.experts is None else traits.experts.intermediate_size)


def _experts_wave(traits: Traits) -> int:
    """Bytes of the experts' results that wait to be summed; see csrc/experts.cc."""
    if traits.experts is None:
        return 0
    a_slot = 4 * traits.experts.num_used * (_up(traits.hidden_size, PANEL) + ROW_PADDING)
    return min(int(native.load().EXPERTS_WAVE_BYTES), DEFAULT_WINDOW_SLOTS * a_slot)


def _delta_columns(delta: DeltaTraits, up: Callable[[int, int], int]) -> int:
    """Of a key head: its queries, its keys and its value heads."""
    num_values = delta.num_value_heads // delta.num_key_heads
    return 2 * up(delta.key_dim, PANEL) + num_values * up(delta.value_dim, PANEL)


def _delta_slot(delta: DeltaTraits, operand: int) -> int:
    """While the delta rule runs: channels of as many key heads as there are threads, decays, the output and one more."""
    heads = min(delta.num_key_heads, torch.get_num_threads())
    return 4 * (heads * _delta_columns(delta, _up) + _up(2 * delta.num_value_heads, PANEL)) + 2 * operand * delta.width


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


def _as_it_is(size: int, multiple: int) -> int:
    return size


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
