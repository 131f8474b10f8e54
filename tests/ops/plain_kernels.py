"""The device kernels in plain torch, on any device: obvious, the oracle of the kernels in Triton and CUDA.

Everything is computed in `compute` (fp32; fp64 for a truth) from operands as they are; results are rounded to the
types that the protocol names, unless compute is fp64: then they stay fp64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from psyfast.ops import reference_delta
from psyfast.ops.gpu.kernel_set import (
    PAGE_SLOTS,
    AttentionTiles,
    DeltaPlan,
    DeltaSizes,
    DeviceNorm,
    HeadsShape,
    HeadsTraits,
    ScoreTensors,
)

ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class PlainKernels:
    """psyfast.ops.gpu.kernel_set.DeviceKernels, its tiles of a few rows so that small batches have many."""

    name: str = "plain"
    query_rows: int = 32
    key_pages: int = 2
    compute: torch.dtype = torch.float32

    def tile_shape(self, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
        return self.query_rows, self.key_pages

    def norm_rows(self, x_TD: Tensor, norm: DeviceNorm | None, dtype: torch.dtype) -> Tensor:
        return self._rounded(self._normed(x_TD.to(self.compute), norm), dtype)

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
        H, K, E = shape.num_heads, shape.num_kv_heads, shape.head_dim
        qkv = qkv_TC.to(self.compute)
        if traits.bias is not None:
            qkv = qkv + traits.bias.to(self.compute)
        q, k, v = qkv.split([H * E, K * E, K * E], dim=1)
        if traits.norm_heads_together:
            q, k = self._normed(q, traits.q_norm), self._normed(k, traits.k_norm)
        q, k, v = q.unflatten(1, (H, E)), k.unflatten(1, (K, E)), v.unflatten(1, (K, E))
        if not traits.norm_heads_together:
            q, k = self._normed(q, traits.q_norm), self._normed(k, traits.k_norm)
        if cos_sin is not None:
            q, k = self._rotated(q, positions_T, cos_sin), self._rotated(k, positions_T, cos_sin)
        if kv_PKSE is not None:
            pages, slots = slots_T // PAGE_SLOTS, slots_T % PAGE_SLOTS
            for stored, new in zip(kv_PKSE, (k, v), strict=True):
                stored[pages, :, slots] = new.to(stored.dtype)
        return self._rounded(q.contiguous(), dtype)

    def check_delta_sizes(self, sizes: DeltaSizes, num_taps: int) -> None:
        """All sizes are right."""

    def short_convolution(self, qkv_TC: Tensor, path_WT: Tensor, taps_WC: Tensor, sizes: DeltaSizes) -> Tensor:
        K, H, E, V = sizes.num_key_heads, sizes.num_value_heads, sizes.key_dim, sizes.value_dim
        qkv, y_TC = qkv_TC.to(self.compute), torch.zeros(qkv_TC.shape, dtype=self.compute)
        for row_T, tap_C in zip(path_WT.long(), taps_WC.to(self.compute), strict=True):
            y_TC += torch.where(row_T[:, None] >= 0, qkv[row_T], 0) * tap_C
        q, k, v = functional.silu(y_TC).split([K * E, K * E, H * V], dim=1)
        q, k = (reference_delta.unit_length(part.unflatten(1, (K, E))).flatten(1) for part in (q, k))
        return torch.cat([q * E**-0.5, k, v], dim=1)

    def delta_rule(
        self, qkv_TC: Tensor, log_decay_TH: Tensor, write_TH: Tensor, plan: DeltaPlan, sizes: DeltaSizes
    ) -> Tensor:
        K, H, E, V = sizes.num_key_heads, sizes.num_value_heads, sizes.key_dim, sizes.value_dim
        qkv, log_decay_TH, write_TH = (part.to(self.compute) for part in (qkv_TC, log_decay_TH, write_TH))
        q, k, v = qkv.split([K * E, K * E, H * V], dim=1)
        q, k = (part.unflatten(1, (K, E)).repeat_interleave(H // K, 1) for part in (q, k))
        inputs = reference_delta.Inputs(q, k, v.unflatten(1, (H, V)), log_decay_TH, write_TH)
        out, states = torch.full_like(inputs.v_THV, float("nan")), {-1: v.new_zeros(H, E, V)}
        for group in plan.groups:
            for piece in range(group.first_piece, group.first_piece + group.num_pieces):
                start, stop, source = plan.pieces_P3[piece].tolist()
                state = states[source]
                for chunk in range(start, stop):
                    rows = plan.rows_N64[chunk].long()
                    rows, (known, number) = rows[rows >= 0], plan.chunks_N2[chunk].tolist()
                    o_HRV, state = reference_delta.chunk_step(*inputs.rows(rows), state)
                    out[rows[known:]] = o_HRV.transpose(0, 1)[known:]
                    if number >= 0:
                        states[number] = state
        return out

    def copy_slots(self, kv_PKSE: tuple[Tensor, Tensor], runs_R4: Tensor) -> None:
        for page_from, page_to, start, stop in runs_R4.tolist():
            for stored in kv_PKSE:
                stored[page_to, :, start:stop] = stored[page_from, :, start:stop]

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
        """Tile by tile: the scores with the listed blocks alone, masked as the record says, one softmax a row."""
        T, H, E = q_THE.shape
        o_THE = torch.full((T, H, E), torch.nan, dtype=self.compute, device=q_THE.device)
        for (start, stop), bounds in zip(tiles.rows_I2.tolist(), tiles.bounds_I4.tolist(), strict=True):
            first, full_start, full_stop, last = bounds
            blocks = slice(first, last)
            mask_RC = visible(tiles, blocks, positions_T[start:stop], start, window)
            S = PAGE_SLOTS * tiles.key_pages
            mask_RC[:, (full_start - first) * S : (full_stop - first) * S] = True
            pages = tiles.pages_BJ[blocks].flatten().long()
            k_HCE, v_HCE = (
                stored[pages].transpose(0, 1).flatten(1, 2).to(self.compute).repeat_interleave(H // stored.shape[1], 0)
                for stored in kv_PKSE
            )
            scores_HRC = q_THE[start:stop].transpose(0, 1).to(self.compute) @ k_HCE.transpose(1, 2) * scale
            if soft_cap is not None:
                scores_HRC = soft_cap * torch.tanh(scores_HRC / soft_cap)
            scores_HRC = scores_HRC.masked_fill(~mask_RC, -torch.inf)
            if sinks_H is not None:
                sinks = sinks_H.to(self.compute)[:, None, None].expand(-1, stop - start, 1)
                scores_HRC = torch.cat([scores_HRC, sinks], -1)
            weights_HRC = scores_HRC.softmax(-1)[..., : mask_RC.shape[1]]
            o_THE[start:stop] = (weights_HRC @ v_HCE).transpose(0, 1)
        return self._rounded(o_THE.flatten(1), q_THE.dtype)

    def add_rows(self, x_TD: Tensor, y_TD: Tensor, bias_D: Tensor | None, norm: DeviceNorm | None) -> None:
        y = y_TD.to(self.compute)
        if bias_D is not None:
            y = y + bias_D.to(self.compute)
        x_TD += self._normed(y, norm)

    def gated(self, gate_up_TG: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
        gate, up = gate_up_TG.to(self.compute).chunk(2, dim=1)
        return self._rounded(ACTIVATIONS[activation](gate) * up, dtype)

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
        logits_NV = y_ND.to(self.compute) @ lm_head_VD.to(self.compute).T * scale
        if soft_cap is not None:
            logits_NV = soft_cap * torch.tanh(logits_NV / soft_cap)
        usable_N = ~(logits_NV.isnan() | (logits_NV == torch.inf)).any(1)
        target_logit_N1 = logits_NV.gather(1, target_N[:, None])
        lse_N = logits_NV.logsumexp(1)
        ids_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
        ahead_NV = (logits_NV > target_logit_N1) | ((logits_NV == target_logit_N1) & (ids_V < target_N[:, None]))
        logprobs_NV = logits_NV - lse_N[:, None]
        entropy_N = -(logprobs_NV.exp() * logprobs_NV.clamp_min(torch.finfo(self.compute).min)).sum(1)
        option_nll_NK = lse_N[:, None] - logits_NV.gather(1, option_ids_NK.clamp_min(0))
        first_largest_N = (logits_NV == logits_NV.amax(1, keepdim=True)).int().argmax(1)
        nll_N = (lse_N - target_logit_N1[:, 0]).where(usable_N, torch.nan)
        option_nll_NK = option_nll_NK.masked_fill(~usable_N[:, None] | (option_ids_NK < 0), torch.nan)
        return ScoreTensors(
            nll_N=self._rounded(nll_N, torch.float32),
            argmax_N=first_largest_N.where(usable_N, -1),
            rank_N=ahead_NV.sum(1).where(usable_N, -1),
            entropy_N=self._rounded(entropy_N.where(usable_N, torch.nan), torch.float32),
            option_nll_NK=self._rounded(option_nll_NK, torch.float32),
        )

    def _rounded(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values if self.compute == torch.float64 else values.to(dtype)

    def _normed(self, x: Tensor, norm: DeviceNorm | None) -> Tensor:
        if norm is None:
            return x
        weight = norm.weight.to(self.compute) + (1 if norm.unit_offset else 0)
        return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * weight

    def _rotated(self, x_THE: Tensor, positions_T: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = (table[positions_T][:, None].to(self.compute) for table in cos_sin)
        pairs = cos.shape[-1]
        a, b, rest = x_THE.split([pairs, pairs, x_THE.shape[-1] - 2 * pairs], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def visible(tiles: AttentionTiles, blocks: slice, positions_R: Tensor, first_row: int, window: int | None) -> Tensor:
    """Which key of a tile's blocks each row sees, by the record's rule alone: [rows, blocks · slots a block]."""
    S = PAGE_SLOTS * tiles.key_pages
    rows_R = first_row + torch.arange(len(positions_R), device=positions_R.device)
    run_B2 = tiles.block_rows_B2[blocks].repeat_interleave(S, 0)
    keys_C = (tiles.index_B[blocks].long()[:, None] * S + torch.arange(S, device=positions_R.device)).flatten()
    mask_RC = (run_B2[:, 0] <= rows_R[:, None]) & (rows_R[:, None] < run_B2[:, 1])
    mask_RC &= keys_C <= positions_R[:, None]
    if window is not None:
        mask_RC &= keys_C > positions_R[:, None] - window
    return mask_RC
