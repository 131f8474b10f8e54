"""What a GPU backend brings: its kernels. Everything else about the seven operators is the same for all backends.

Letters: T tokens, N scored rows, D hidden, H query heads, K kv heads (or option columns), E head dimension, F
feed-forward width, V vocabulary, P pages, R rotated pairs. All tensors are contiguous and on the backend's device; they were checked before
(psyfast.ops.gpu.checks), so a kernel need not look again. A lane's operand type is bf16 or fp32; sums are fp32 in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

PAGE_SLOTS = 64
CHUNK_ROWS = 64
"""Positions of a path between two borders, at which states of the delta rule may be kept."""


@dataclass(frozen=True)
class DeviceNorm:
    """RMSNorm with its weight in fp32: x / sqrt(mean(x²) + eps) · (weight + 1 if unit_offset else weight)."""

    weight: Tensor
    eps: float
    unit_offset: bool


@dataclass(frozen=True)
class HeadsShape:
    """What the columns of a projection are: q of H heads, then k, then v of K heads each, E wide. H or K may be 0."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class HeadsTraits:
    """What is done to q, k and v after the projection; fp32. None: left out.

    q_norm, k_norm: of each head alone (weight [E]), or of a row's heads together (weight [H·E], [K·E]).
    """

    bias: Tensor | None
    q_norm: DeviceNorm | None
    k_norm: DeviceNorm | None
    norm_heads_together: bool


@dataclass(frozen=True)
class AttentionTiles:
    """The work of attention as a list of tiles, int32 on the device; made once a batch (psyfast.ops.gpu.tiles).

    A tile is up to `query_rows` consecutive query rows, of one segment or of several short ones, and a list of key blocks,
    ascending. A key block is `key_pages` pages at an absolute multiple: block b holds the positions
    [b · S, (b + 1) · S) of a path, S = 64 · key_pages. Rows of several segments may meet the same positions in different pages: then
    there are several blocks of one index, each for a run of rows. A row sees a key where
        block_rows[b][0] ≤ row < block_rows[b][1]  and  position − window < key position ≤ position of the row,
    and every row sees at least its own. A block that hides all keys from a row leaves its sums as they are, to the bit:
    so a row's result does not depend on the tile that it is in.

    rows_I2: first row and row after the last. bounds_I4: the tile's blocks [0, 3) as indices (start, full_start,
    full_stop, stop) into the block arrays: in [full_start, full_stop) every row of the tile sees every key, so no mask is needed.
    index_B: b. pages_BJ: page ids, `key_pages` a block; where a path ends before a block does, its last page again (always
    masked). block_rows_B2: the run of rows, absolute. Tiles stand with the most blocks first.
    """

    query_rows: int
    key_pages: int
    rows_I2: Tensor
    bounds_I4: Tensor
    index_B: Tensor
    pages_BJ: Tensor
    block_rows_B2: Tensor

    def to(self, device: torch.device) -> AttentionTiles:
        """The same tiles on a device."""
        names = ("rows_I2", "bounds_I4", "index_B", "pages_BJ", "block_rows_B2")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class DeltaSizes:
    """Heads of a gated delta-net: K of keys, E wide, each for H / K of values, V wide. C = 2·K·E + H·V channels: q, k, v."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int

    @property
    def chunk_numbers(self) -> tuple[int, int, int, int]:
        """fp32 numbers that stand between two kernels for a value head of a chunk: W [64, E], U₀ [64, V], M [64, 64], decays [2, 64]."""
        return CHUNK_ROWS * self.key_dim, CHUNK_ROWS * self.value_dim, CHUNK_ROWS * CHUNK_ROWS, 2 * CHUNK_ROWS

    def chunks_within(self, num_bytes: int) -> int:
        """The chunks for which they take at most so many bytes, at least one."""
        return max(1, num_bytes // (4 * self.num_value_heads * sum(self.chunk_numbers)))


@dataclass(frozen=True)
class DeltaGroup:
    """Consecutive pieces, of which none starts from another's state, and their consecutive chunks."""

    first_piece: int
    num_pieces: int
    first_chunk: int
    num_chunks: int


@dataclass(frozen=True)
class DeltaPlan:
    """The work of delta_rule, int32 on the device; made once a batch (psyfast.ops.gpu.delta_plan).

    A chunk is a path's rows between two borders, CHUNK_ROWS positions apart; the first of a segment begins with rows of its
    ancestors, which are computed again and not written. Pieces are runs of a segment's chunks. Groups run in order: the
    state that a piece starts from was kept by a group before, and its number may be taken anew by a group behind the last that reads it.

    rows_N64: the row at each place of a chunk, −1: none. chunks_N2: how many places are ancestors', and the number under
    which the state after the chunk is kept (−1: it is not). pieces_P3: first chunk, chunk after the last, number of the
    state that it starts from (−1: zeros).
    """

    rows_N64: Tensor
    chunks_N2: Tensor
    pieces_P3: Tensor
    groups: tuple[DeltaGroup, ...]
    num_states: int

    def to(self, device: torch.device) -> DeltaPlan:
        """The same plan on a device."""
        names = ("rows_N64", "chunks_N2", "pieces_P3")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class ScoreTensors:
    """`HeadScores` on the device, its contract the same: int64 argmax and rank, fp32 nll, entropy and option_nll."""

    nll_N: Tensor
    argmax_N: Tensor
    rank_N: Tensor
    entropy_N: Tensor
    option_nll_NK: Tensor


class DeviceKernels(Protocol):
    """A GPU backend's kernels. None waits for the device; all run on torch's current stream.

    query_rows and key_pages are constants of the backend for a head dimension and operand type: key_pages is part of
    what defines its bits.
    """

    name: str

    def check_delta_sizes(self, sizes: DeltaSizes, num_taps: int) -> None:
        """BackendError for heads or filters that `short_convolution` and `delta_rule` do not take."""
        ...

    def tile_shape(self, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
        """(query_rows, key_pages) of attention's tiles."""
        ...

    def norm_rows(self, x_TD: Tensor, norm: DeviceNorm | None, dtype: torch.dtype) -> Tensor:
        """x_TD fp32, normalised (None: as it is) and rounded to the operand type: y_TD."""
        ...

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
        """Bias, norms of q and k, rotary embedding: returns q_THE in the operand type, writes k and v into the pages.

        qkv_TC: fp32, C = (H + 2K) · E. cos_sin: [positions, R] fp32 each, R ≤ E / 2; the pairs are (i, i + R), the rest of
        a head stays as it is; None: not rotated. positions_T, slots_T: int64; a slot is page · 64 + position mod 64.
        kv_PKSE: K and V as [pages, K, 64, E] in the operand type; None, as slots_T, where K is 0.
        """
        ...

    def copy_slots(self, kv_PKSE: tuple[Tensor, Tensor], runs_R4: Tensor) -> None:
        """Copies slots inside pages, K and V: int64 rows (page from, page to, first slot, slot after the last).

        No run reads what another one writes.
        """
        ...

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
        """Causal attention of every row over its path, o_T(HE) in the operand type. sinks_H: fp32 logits without a value."""
        ...

    def short_convolution(self, qkv_TC: Tensor, path_WT: Tensor, taps_WC: Tensor, sizes: DeltaSizes) -> Tensor:
        """Silu of a causal filter along each row's path, q and k then of unit length, q divided by √E: qkv_TC, fp32.

        path_WT: int32, the row that each tap reads, −1 where the path had not begun. taps_WC: fp32, in that order.
        """
        ...

    def delta_rule(
        self, qkv_TC: Tensor, log_decay_TH: Tensor, write_TH: Tensor, plan: DeltaPlan, sizes: DeltaSizes
    ) -> Tensor:
        """The gated delta rule along every path (psyfast.ops.reference_delta has its equations), o_THV; all fp32.

        qkv_TC: from `short_convolution`.
        """
        ...

    def add_rows(self, x_TD: Tensor, y_TD: Tensor, bias_D: Tensor | None, norm: DeviceNorm | None) -> None:
        """X += norm(y + bias), in place, all fp32."""
        ...

    def gated(self, gate_up_TG: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
        """act(gate) · up of [T, 2F] fp32 (gate first), rounded to the operand type: h_TF.

        activation: silu, gelu (erf) or gelu_pytorch_tanh.
        """
        ...

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
        """Scores rows that are normalised already; y and lm_head in one type: bf16, fp16 or fp32. Ids int64, options −1 for none.

        logit = cap(scale · y Wᵀ) in fp32, never [N, V]; partial results of fixed blocks of the vocabulary are merged in order.
        """
        ...
