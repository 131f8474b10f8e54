"""The Triton backend's kernels: kernels/triton behind the protocol of a GPU backend."""

from __future__ import annotations

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.kernels.triton import attention, delta_rule, heads, linear_nll, rows, short_convolution
from psyfast.ops.gpu.checks import check_delta_limits
from psyfast.ops.gpu.kernel_set import (
    AttentionTiles,
    DeltaPlan,
    DeltaSizes,
    DeviceNorm,
    HeadsShape,
    HeadsTraits,
    ScoreTensors,
)


class TritonKernels:
    """psyfast.ops.gpu.kernel_set.DeviceKernels: on a CUDA device, or on the CPU in Triton's interpreter."""

    name = "triton"

    def check_delta_sizes(self, sizes: DeltaSizes, num_taps: int) -> None:
        """BackendError for heads above 256 and filters of more than 64 taps."""
        check_delta_limits(self.name, sizes, num_taps, delta_rule.MAX_DIM, short_convolution.MAX_TAPS)

    def tile_shape(self, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
        """(query_rows, key_pages); BackendError for a head dimension that the kernel lacks."""
        if head_dim not in attention.HEAD_DIMS:
            known = ", ".join(str(size) for size in attention.HEAD_DIMS)
            raise BackendError(
                f"the triton backend has no attention for heads of {head_dim}, expected one of {known}; use --backend reference"
            )
        query_rows, key_pages = attention.tile_shape(head_dim, dtype)
        return query_rows, key_pages

    def norm_rows(self, x_TD: Tensor, norm: DeviceNorm | None, dtype: torch.dtype) -> Tensor:
        """x_TD fp32, normalised (None: as it is) and rounded to the operand type: y_TD."""
        y_TD: Tensor = rows.norm_rows(x_TD, norm, dtype)
        return y_TD

    def heads(
        self,
        qkv_TC: Tensor,
        shape: HeadsShape,
        traits: HeadsTraits,
        cos_sin: tuple[Tensor, Tensor] | None,
        positions_T: Tensor,
        slots_T: Tensor | None,
        kv_PKSE: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Bias, norms of q and k, rotary embedding: returns q_THE, writes k and v into the pages."""
        q_THE: Tensor = heads.heads(
            qkv_TC,
            (shape.num_heads, shape.num_kv_heads),
            shape.head_dim,
            traits.bias,
            traits.q_norm,
            traits.k_norm,
            traits.norm_heads_together,
            cos_sin,
            positions_T,
            slots_T,
            kv_PKSE,
            dtype,
        )
        return q_THE

    def copy_slots(self, kv_PKSE: tuple[Tensor, Tensor], runs_R4: Tensor) -> None:
        """Copies slots inside pages, K and V."""
        rows.copy_slots(kv_PKSE, runs_R4)

    def attention(
        self,
        q_THE: Tensor,
        kv_PKSE: tuple[Tensor, Tensor],
        positions_T: Tensor,
        tiles: AttentionTiles,
        *,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Causal attention of every row over its path, o_T(HE) in the operand type."""
        o_TO: Tensor = attention.attention(
            q_THE, kv_PKSE, positions_T, tiles, scale=scale, window=window, soft_cap=soft_cap, sinks_H=sinks_H
        )
        return o_TO

    def short_convolution(self, qkv_TC: Tensor, path_WT: Tensor, taps_WC: Tensor, sizes: DeltaSizes) -> Tensor:
        """Silu of a causal filter along each row's path, q and k then of unit length, q divided by √E."""
        out_TC: Tensor = short_convolution.short_convolution(qkv_TC, path_WT, taps_WC, sizes)
        return out_TC

    def delta_rule(
        self, qkv_TC: Tensor, log_decay_TH: Tensor, write_TH: Tensor, plan: DeltaPlan, sizes: DeltaSizes
    ) -> Tensor:
        """The gated delta rule along every path, o_THV."""
        o_THV: Tensor = delta_rule.delta_rule(qkv_TC, log_decay_TH, write_TH, plan, sizes)
        return o_THV

    def add_rows(self, x_TD: Tensor, y_TD: Tensor, bias_D: Tensor | None, norm: DeviceNorm | None) -> None:
        """X += norm(y + bias), in place, all fp32."""
        rows.add_rows(x_TD, y_TD, bias_D, norm)

    def gated(self, gate_up_TG: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
        """act(gate) · up of [T, 2F] fp32 (gate first), rounded to the operand type: h_TF."""
        h_TF: Tensor = rows.gated(gate_up_TG, activation, dtype)
        return h_TF

    def linear_nll(
        self,
        y_ND: Tensor,
        lm_head_VD: Tensor,
        target_N: Tensor,
        option_ids_NK: Tensor,
        *,
        scale: float,
        soft_cap: float | None,
    ) -> ScoreTensors:
        """Scores rows that are normalised already, never [N, V]."""
        nll_N, argmax_N, rank_N, entropy_N, option_nll_NK = linear_nll.linear_nll(
            y_ND, lm_head_VD, target_N, option_ids_NK, scale=scale, soft_cap=soft_cap
        )
        return ScoreTensors(nll_N, argmax_N, rank_N, entropy_N, option_nll_NK)
