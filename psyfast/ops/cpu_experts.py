"""Native experts: a router and many MLPs packed once, checks at the boundary, one call of psyfast._native."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psyfast.ops import native
from psyfast.ops.cpu_attention import PANEL_COLUMNS
from psyfast.ops.cpu_linear import PackedNorm, check_lane, gated_columns, padded_norm
from psyfast.ops.cpu_packing import pack
from psyfast.ops.expert_sizes import check_experts
from psyfast.ops.native import check, guarded
from psyfast.ops.records import ExpertsWeights, Lane


@dataclass(frozen=True)
class PackedExperts:
    """`experts`' weights: panels of the router, and of each expert's projections as `mlp` has them.

    The addresses of the latter stand in int64 tensors, for the native code.
    """

    lane: Lane
    hidden_size: int
    feed_forward: int
    num_used: int
    normalised: bool
    norm: PackedNorm
    router: Tensor
    gate_up: tuple[Tensor, ...]
    down: tuple[Tensor, ...]
    gate_up_addresses: Tensor
    down_addresses: Tensor
    activation: str
    router_bias: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


def prepare_experts(weights: ExpertsWeights, lane: Lane, num_threads: int | None = None) -> PackedExperts:
    """Packs the router and the experts. Raises BackendError for weights that do not fit together."""
    D, F = weights.down_proj[0].shape if weights.down_proj else (0, 0)
    check_experts(weights, D, F)
    columns = gated_columns(F)
    gate_up = tuple(pack("gate_up_proj", one, lane, columns, num_threads) for one in weights.gate_up_proj)
    down = tuple(pack("down_proj", one, lane, num_threads=num_threads) for one in weights.down_proj)
    return PackedExperts(
        lane=lane,
        hidden_size=D,
        feed_forward=F,
        num_used=weights.num_used,
        normalised=weights.normalised,
        norm=padded_norm("norm weight", weights.norm, D),
        router=pack("router", weights.router, lane, num_threads=num_threads),
        gate_up=gate_up,
        down=down,
        gate_up_addresses=_addresses(gate_up),
        down_addresses=_addresses(down),
        activation=weights.activation,
        router_bias=_in_columns(weights.router_bias, torch.arange(len(weights.down_proj))),
        gate_up_bias=_in_columns(weights.gate_up_bias, columns),
        down_bias=_in_columns(weights.down_bias, torch.arange(D)),
    )


def _in_columns(bias: Tensor | None, columns: Tensor) -> Tensor | None:
    """Biases [columns], or a row an expert, in the order of the panels' columns (−1: padding), and zeros up to whole panels."""
    if bias is None:
        return None
    whole = -(-len(columns) // PANEL_COLUMNS) * PANEL_COLUMNS
    out = torch.zeros(*bias.shape[:-1], whole)
    out[..., : len(columns)] = torch.where(columns >= 0, bias.float()[..., columns.clamp(min=0)], 0.0)
    return out


def _addresses(panels: tuple[Tensor, ...]) -> Tensor:
    return torch.tensor([one.data_ptr() for one in panels], dtype=torch.int64)


def experts(
    x_TD: Tensor, weights: PackedExperts, *, lane: Lane, num_threads: int | None = None, isa: str | None = None
) -> None:
    """X += the weighted sum of each token's experts, in place. Raises BackendError for bad arguments.

    A row's bits depend on the row, the weights and the ISA level alone.
    """
    check_lane(lane, weights.lane)
    check("x", x_TD, torch.float32, (None, weights.hidden_size))
    module = native.load()
    guarded(
        lambda: module.experts(
            x=x_TD.data_ptr(),
            num_tokens=x_TD.shape[0],
            hidden=weights.hidden_size,
            norm=weights.norm.address,
            eps=weights.norm.eps,
            router=weights.router.data_ptr(),
            router_bias=_address(weights.router_bias),
            num_experts=len(weights.down),
            num_used=weights.num_used,
            normalised=weights.normalised,
            gate_up=weights.gate_up_addresses.data_ptr(),
            down=weights.down_addresses.data_ptr(),
            gate_up_bias=_address(weights.gate_up_bias),
            down_bias=_address(weights.down_bias),
            lane=lane.value,
            feed_forward=weights.feed_forward,
            activation=weights.activation,
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            isa=isa or "",
        )
    )


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()
