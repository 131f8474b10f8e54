"""Native delta_rule: weights packed once, checks at the boundary, one call of psyfast._native.

Letters as in `DeltaRuleWeights`: K key heads of E dimensions, H value heads of V, W taps, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import native
from psyfast.ops.cpu_attention import OPERAND, PANEL_COLUMNS
from psyfast.ops.cpu_linear import PackedNorm, check_lane, check_shape, padded_norm
from psyfast.ops.cpu_packing import pack
from psyfast.ops.delta_sizes import check_delta_rule
from psyfast.ops.native import check, guarded
from psyfast.ops.paths import parent_rows
from psyfast.ops.records import DeltaRuleWeights, Lane, Pages


@dataclass(frozen=True)
class PackedDeltaRule:
    """`delta_rule`'s weights: for each key head panels of its q, its k and its value heads, each padded to whole panels.

    filter: [K, W, columns], in the columns' order.
    """

    lane: Lane
    hidden_size: int
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    norm: PackedNorm
    panels: Tensor
    decay_write_panels: Tensor
    filter: Tensor
    log_rate: Tensor
    time_bias: Tensor
    head_norm: PackedNorm


def prepare_delta_rule(weights: DeltaRuleWeights, lane: Lane, num_threads: int | None = None) -> PackedDeltaRule:
    """Packs the projections once for all later calls. Raises BackendError for weights that do not fit together."""
    K, H, E, V = weights.num_key_heads, weights.num_value_heads, weights.key_dim, weights.value_dim
    D, C = weights.qkv_proj.shape[-1], weights.num_channels
    check_delta_rule(weights)
    check_shape("qkv_proj", weights.qkv_proj, C, D)
    check_shape("decay_write_proj", weights.decay_write_proj, 2 * H, D)
    most = int(native.load().MAX_CONV_WIDTH)
    if not 1 <= weights.conv_CW.shape[1] <= most:
        raise BackendError(
            f"the filter has {weights.conv_CW.shape[1]} taps, expected 1 to {most}; use --backend reference"
        )
    channel_KC = _channels_of_heads(K, H, E, V)
    known = (channel_KC >= 0)[:, None]
    taps_WC = weights.conv_CW.float().T.contiguous()
    return PackedDeltaRule(
        lane=lane,
        hidden_size=D,
        num_key_heads=K,
        num_value_heads=H,
        key_dim=E,
        value_dim=V,
        conv_width=taps_WC.shape[0],
        norm=padded_norm("norm weight", weights.norm, D),
        panels=pack("qkv_proj", weights.qkv_proj, lane, channel_KC.flatten(), num_threads),
        decay_write_panels=pack("decay_write_proj", weights.decay_write_proj, lane, num_threads=num_threads),
        filter=torch.where(known, taps_WC[:, channel_KC.clamp(min=0)].transpose(0, 1), 0.0).contiguous(),
        log_rate=weights.log_rate_H.float().contiguous(),
        time_bias=weights.time_bias_H.float().contiguous(),
        head_norm=padded_norm("heads' norm weight", weights.head_norm, V),
    )


def _channels_of_heads(K: int, H: int, E: int, V: int) -> Tensor:
    """The channel in each of a key head's columns, −1 for padding: int64 [K, columns]."""
    queries, keys = torch.arange(2 * K * E).view(2, K, 1, E)
    values = 2 * K * E + torch.arange(H * V).view(K, H // K, V)
    return torch.cat([_whole_panels(part).flatten(1) for part in (queries, keys, values)], dim=1)


def _whole_panels(columns: Tensor) -> Tensor:
    padding = -columns.shape[-1] % PANEL_COLUMNS
    return torch.nn.functional.pad(columns, (0, padding), value=-1)


def delta_rule(
    x_TD: Tensor,
    pages: Pages,
    weights: PackedDeltaRule,
    *,
    lane: Lane,
    rows_N: Tensor | None = None,
    num_threads: int | None = None,
    isa: str | None = None,
) -> Tensor:
    """Normalised outputs of the value heads in the lane's type: o_T(HV), or of the ascending rows_N alone.

    A row's bits depend on its path, the weights and the ISA level alone. Needs the whole batch's tables: not `Pages.at`.
    Raises BackendError for bad arguments.
    """
    check_lane(lane, weights.lane)
    T = x_TD.shape[0]
    check("x", x_TD, torch.float32, (None, weights.hidden_size))
    check("positions", pages.positions_T, torch.int64, (T,))
    check("slots", pages.slots_T, torch.int64, (T,))
    check("segments", pages.qo_indptr, torch.int64, (None,))
    parent_row = parent_rows(pages)
    start = pages.positions_T[pages.qo_indptr[:-1]].contiguous()
    o = torch.empty(T, weights.num_value_heads * weights.value_dim, dtype=OPERAND[lane])
    module = native.load()
    guarded(
        lambda: module.delta_rule(
            x=x_TD.data_ptr(),
            num_tokens=T,
            hidden=weights.hidden_size,
            norm=weights.norm.address,
            eps=weights.norm.eps,
            panels=weights.panels.data_ptr(),
            decay_write_panels=weights.decay_write_panels.data_ptr(),
            lane=lane.value,
            taps=weights.filter.data_ptr(),
            log_rate=weights.log_rate.data_ptr(),
            time_bias=weights.time_bias.data_ptr(),
            head_norm=weights.head_norm.address,
            head_eps=weights.head_norm.eps,
            num_key_heads=weights.num_key_heads,
            num_value_heads=weights.num_value_heads,
            key_dim=weights.key_dim,
            value_dim=weights.value_dim,
            conv_width=weights.conv_width,
            num_segments=len(start),
            qo_indptr=pages.qo_indptr.data_ptr(),
            start=start.data_ptr(),
            parent_row=parent_row.data_ptr(),
            o=o.data_ptr(),
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            isa=isa or "",
        )
    )
    return o if rows_N is None else o[rows_N]
