"""Native attn_in, attn_out and mlp: weights packed once, checks at the boundary, one call of psyfast._native each.

Letters: T tokens, N rows whose queries are wanted, D hidden, H query heads, K kv heads, E head size, F feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import native
from psyfast.ops.cpu_attention import OPERAND, PANEL_COLUMNS, page_shapes
from psyfast.ops.cpu_packing import pack
from psyfast.ops.native import check, guarded
from psyfast.ops.records import AttnInWeights, AttnOutWeights, Lane, Matrix, MlpWeights, Norm, OutputGate, Pages, Rope
from psyfast.ops.reference import GATES


@dataclass(frozen=True)
class PackedNorm:
    """A norm's factors, unit offset included, with zeros behind them for whole vectors."""

    scale: Tensor | None
    eps: float = 0.0

    @property
    def address(self) -> int:
        """Of the factors; 0 where there is no norm."""
        return 0 if self.scale is None else self.scale.data_ptr()


@dataclass(frozen=True)
class PackedAttnIn:
    """`attn_in`'s weights: panels of the heads of q, then k, then v, each head padded to whole panels."""

    lane: Lane
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm: PackedNorm
    panels: Tensor
    bias: Tensor
    q_norm: PackedNorm
    k_norm: PackedNorm
    norm_heads_together: bool
    rope: Rope | None


@dataclass(frozen=True)
class PackedAttnOut:
    """`attn_out`'s weights: panels of [D, H·E]."""

    lane: Lane
    hidden_size: int
    width: int
    panels: Tensor
    bias: Tensor | None
    post_norm: PackedNorm
    gate: PackedGate | None = None


@dataclass(frozen=True)
class PackedGate:
    """Panels of the output gate's projection, [H·E, D]."""

    norm: PackedNorm
    panels: Tensor
    activation: str


@dataclass(frozen=True)
class PackedMlp:
    """`mlp`'s weights: panels of 32 columns of the gate and the same 32 of up in turn, and of the down projection."""

    lane: Lane
    hidden_size: int
    feed_forward: int
    norm: PackedNorm
    gate_up: Tensor
    down: Tensor
    activation: str
    post_norm: PackedNorm


def prepare_attn_in(weights: AttnInWeights, lane: Lane, num_threads: int | None = None) -> PackedAttnIn:
    """Packs the projection once for all later calls. Raises BackendError for weights that do not fit together."""
    H, K, E = weights.num_heads, weights.num_kv_heads, weights.head_dim
    num_heads = H + 2 * K
    D = weights.qkv_proj.shape[-1]
    check_shape("qkv_proj", weights.qkv_proj, num_heads * E, D)
    padded = -(-E // PANEL_COLUMNS) * PANEL_COLUMNS
    columns = torch.full((num_heads, padded), -1, dtype=torch.int64)
    columns[:, :E] = torch.arange(num_heads * E).view(num_heads, E)
    bias = torch.zeros(num_heads, padded)
    if weights.bias is not None:
        if weights.bias.shape != (num_heads * E,):
            raise BackendError(
                f"bias has shape {list(weights.bias.shape)}, expected [{num_heads * E}]; check the weights"
            )
        bias[:, :E] = weights.bias.float().view(num_heads, E)
    return PackedAttnIn(
        lane=lane,
        hidden_size=D,
        num_heads=H,
        num_kv_heads=K,
        head_dim=E,
        norm=padded_norm("norm weight", weights.norm, D),
        panels=pack("qkv_proj", weights.qkv_proj, lane, columns.flatten(), num_threads),
        bias=_padded(bias.flatten(), bias.numel()),
        q_norm=_head_norm("q_norm weight", weights.q_norm, H if weights.norm_heads_together else 1, E, padded),
        k_norm=_head_norm("k_norm weight", weights.k_norm, K if weights.norm_heads_together else 1, E, padded),
        norm_heads_together=weights.norm_heads_together and weights.q_norm is not None,
        rope=weights.rope,
    )


def prepare_attn_out(weights: AttnOutWeights, lane: Lane, num_threads: int | None = None) -> PackedAttnOut:
    """Packs the output projection. Raises BackendError for weights that do not fit together."""
    D, width = weights.o_proj.shape
    check_shape("o_proj", weights.o_proj, D, width)
    if weights.bias is not None and weights.bias.shape != (D,):
        raise BackendError(f"bias has shape {list(weights.bias.shape)}, expected [{D}]; check the weights")
    whole = -(-D // PANEL_COLUMNS) * PANEL_COLUMNS
    return PackedAttnOut(
        lane=lane,
        hidden_size=D,
        width=width,
        panels=pack("o_proj", weights.o_proj, lane, num_threads=num_threads),
        bias=None if weights.bias is None else _padded(weights.bias.float(), whole),
        post_norm=padded_norm("post_norm weight", weights.post_norm, D),
        gate=None if weights.gate is None else _prepare_gate(weights.gate, width, D, lane, num_threads),
    )


def _prepare_gate(gate: OutputGate, width: int, D: int, lane: Lane, num_threads: int | None) -> PackedGate:
    check_shape("gate", gate.proj, width, D)
    if gate.activation not in GATES:
        raise BackendError(f"gate activation '{gate.activation}' is not known; choose one of {', '.join(GATES)}")
    return PackedGate(
        norm=padded_norm("gate's norm weight", gate.norm, D),
        panels=pack("gate", gate.proj, lane, num_threads=num_threads),
        activation=gate.activation,
    )


def prepare_mlp(weights: MlpWeights, lane: Lane, num_threads: int | None = None) -> PackedMlp:
    """Packs the three projections. Raises BackendError for weights that do not fit together."""
    D, F = weights.down_proj.shape
    check_shape("gate_up_proj", weights.gate_up_proj, 2 * F, D)
    check_shape("down_proj", weights.down_proj, D, F)
    return PackedMlp(
        lane=lane,
        hidden_size=D,
        feed_forward=F,
        norm=padded_norm("norm weight", weights.norm, D),
        gate_up=pack("gate_up_proj", weights.gate_up_proj, lane, gated_columns(F), num_threads),
        down=pack("down_proj", weights.down_proj, lane, num_threads=num_threads),
        activation=weights.activation,
        post_norm=padded_norm("post_norm weight", weights.post_norm, D),
    )


def gated_columns(feed_forward: int) -> Tensor:
    """Rows of gate_up_proj in the order of its panels' columns: 32 of the gate and the same 32 of up, −1 for padding."""
    width = int(native.load().GATED_COLUMNS)
    num_panels = -(-feed_forward // width)
    gate = torch.full((num_panels * width,), -1, dtype=torch.int64)
    gate[:feed_forward] = torch.arange(feed_forward)
    up = torch.where(gate >= 0, gate + feed_forward, gate)
    return torch.stack([gate.view(num_panels, width), up.view(num_panels, width)], dim=1).flatten()


def attn_in(
    x_TD: Tensor,
    pages: Pages,
    weights: PackedAttnIn,
    *,
    lane: Lane,
    rows_N: Tensor | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
) -> Tensor:
    """Writes K and V of all tokens into the packed pages, copies forked pages' heads, and returns q in the lane's type.

    q is [T, H, E], or [N, H, E] of the ascending tokens rows_N. A row's bits depend on the row, its position, the
    weights and the ISA level alone. Raises BackendError for bad arguments.
    """
    check_lane(lane, weights.lane)
    T, H, E = x_TD.shape[0], weights.num_heads, weights.head_dim
    check("x", x_TD, torch.float32, (None, weights.hidden_size))
    k_shape, v_shape = page_shapes(weights.num_kv_heads, E, lane)
    check("pages of K", pages.k, torch.int32, (None, *k_shape))
    check("pages of V", pages.v, torch.int32, (pages.k.shape[0], *v_shape))
    check("positions", pages.positions_T, torch.int64, (T,))
    check("slots", pages.slots_T, torch.int64, (T,))
    check("copy runs", pages.copy_runs_R4, torch.int64, (None, 4))
    if rows_N is not None:
        check("rows", rows_N, torch.int64, (None,))
    num_rows = T if rows_N is None else len(rows_N)
    q = torch.empty(num_rows, H, E, dtype=OPERAND[lane])
    cos = sin = None
    if weights.rope is not None:
        cos, sin = pages.rope_tables.cos_sin(weights.rope)
    module = native.load()
    guarded(
        lambda: module.attn_in(
            x=x_TD.data_ptr(),
            num_tokens=T,
            hidden=weights.hidden_size,
            norm=weights.norm.address,
            eps=weights.norm.eps,
            panels=weights.panels.data_ptr(),
            lane=lane.value,
            bias=weights.bias.data_ptr(),
            q_norm=weights.q_norm.address,
            q_eps=weights.q_norm.eps,
            k_norm=weights.k_norm.address,
            k_eps=weights.k_norm.eps,
            heads_together=weights.norm_heads_together,
            cos=0 if cos is None else cos.data_ptr(),
            sin=0 if sin is None else sin.data_ptr(),
            num_positions=0 if cos is None else cos.shape[0],
            num_pairs=0 if cos is None else cos.shape[1],
            num_heads=H,
            k=pages.k.data_ptr(),
            v=pages.v.data_ptr(),
            num_pages=pages.k.shape[0],
            num_kv_heads=weights.num_kv_heads,
            head_dim=E,
            position=pages.positions_T.data_ptr(),
            slot=pages.slots_T.data_ptr(),
            copy_run=pages.copy_runs_R4.data_ptr(),
            num_copy_runs=pages.copy_runs_R4.shape[0],
            row=0 if rows_N is None else rows_N.data_ptr(),
            num_rows=num_rows,
            q=q.data_ptr(),
            num_threads=_threads(num_threads),
            isa=isa or "",
        )
    )
    return q


def attn_out(
    o: Tensor,
    x_TD: Tensor,
    weights: PackedAttnOut,
    *,
    lane: Lane,
    num_threads: int | None = None,
    isa: str | None = None,
) -> None:
    """X += post_norm((gate · o) · o_projᵀ + bias), in place; o: [T, H·E] in the lane's type. Raises BackendError."""
    check_lane(lane, weights.lane)
    gate = weights.gate
    check("x", x_TD, torch.float32, (None, weights.hidden_size))
    check("o", o, OPERAND[lane], (x_TD.shape[0], weights.width))
    module = native.load()
    guarded(
        lambda: module.attn_out(
            o=o.data_ptr(),
            num_tokens=x_TD.shape[0],
            width=weights.width,
            panels=weights.panels.data_ptr(),
            lane=lane.value,
            bias=0 if weights.bias is None else weights.bias.data_ptr(),
            post_norm=weights.post_norm.address,
            post_eps=weights.post_norm.eps,
            x=x_TD.data_ptr(),
            hidden=weights.hidden_size,
            gate_panels=0 if gate is None else gate.panels.data_ptr(),
            gate_norm=0 if gate is None else gate.norm.address,
            gate_eps=0.0 if gate is None else gate.norm.eps,
            gate_activation="sigmoid" if gate is None else gate.activation,
            num_threads=_threads(num_threads),
            isa=isa or "",
        )
    )


def mlp(
    x_TD: Tensor, weights: PackedMlp, *, lane: Lane, num_threads: int | None = None, isa: str | None = None
) -> None:
    """X += post_norm(down(act(gate) · up)), in place. Raises BackendError for bad arguments."""
    check_lane(lane, weights.lane)
    check("x", x_TD, torch.float32, (None, weights.hidden_size))
    module = native.load()
    guarded(
        lambda: module.mlp(
            x=x_TD.data_ptr(),
            num_tokens=x_TD.shape[0],
            hidden=weights.hidden_size,
            norm=weights.norm.address,
            eps=weights.norm.eps,
            gate_up=weights.gate_up.data_ptr(),
            down=weights.down.data_ptr(),
            lane=lane.value,
            feed_forward=weights.feed_forward,
            activation=weights.activation,
            post_norm=weights.post_norm.address,
            post_eps=weights.post_norm.eps,
            num_threads=_threads(num_threads),
            isa=isa or "",
        )
    )


def _threads(num_threads: int | None) -> int:
    return torch.get_num_threads() if num_threads is None else num_threads


def check_lane(lane: Lane, packed: Lane) -> None:
    """BackendError unless weights are packed for a lane."""
    if lane is not packed:
        raise BackendError(f"weights are packed for lane {packed.value}, but lane is {lane.value}; prepare them for it")


def check_shape(name: str, weight: Matrix, num_rows: int, inner: int) -> None:
    """BackendError unless a matrix has this shape."""
    if tuple(weight.shape) != (num_rows, inner):
        raise BackendError(f"{name} has shape {list(weight.shape)}, expected [{num_rows}, {inner}]; check the weights")


def _padded(values: Tensor, size: int) -> Tensor:
    """Fp32 values with zeros up to `size`, and a vector's more."""
    out = torch.zeros(size + int(native.load().VECTOR_PADDING))
    out[: len(values)] = values
    return out


def padded_norm(name: str, norm: Norm | None, size: int) -> PackedNorm:
    """A norm of `size` values. Raises BackendError for a weight of another size."""
    return _head_norm(name, norm, 1, size, size)


def _head_norm(name: str, norm: Norm | None, num_heads: int, head_dim: int, padded: int) -> PackedNorm:
    """Of heads that are normalised together (or one): each head's factors padded."""
    if norm is None:
        return PackedNorm(None)
    size = num_heads * head_dim
    if norm.weight_D.shape != (size,):
        raise BackendError(f"{name} has shape {list(norm.weight_D.shape)}, expected [{size}]; check the weights")
    scale = torch.zeros(num_heads, padded)
    scale[:, :head_dim] = (norm.weight_D.float() + float(norm.unit_offset)).view(num_heads, head_dim)
    return PackedNorm(_padded(scale.flatten(), scale.numel()), norm.eps)
