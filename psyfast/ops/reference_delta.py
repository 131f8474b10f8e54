"""The gated delta rule over a forest, in plain torch: a layer's mixing of tokens by a state instead of by attention.

For each value head a state S [E, V] goes along a path; with k and q of length 1, decay α and write strength β of a token

    S ← α S        S ← S + β k (v − Sᵀ k)ᵀ        o = Sᵀ q / √E

(Yang, Kautz and Hatamizadeh 2025, Gated Delta Networks). In chunks of 64 positions, whose borders stand at fixed
positions, with c the running sum of log α inside the chunk and D[i, j] = exp(c_i − c_j) for j ≤ i (their section 3.3):

    (1 + tril(β K Kᵀ ∘ D, −1)) U = β (V − exp(c) K S)          U: what each token writes
    O = exp(c) Q S + (Q Kᵀ ∘ D) U
    S ← exp(c_last) S + (exp(c_last − c) K)ᵀ U

A segment that begins inside a chunk starts from the state at the chunk's border and computes the rows of its path from
there again. Letters: T rows, K key heads, H value heads, E and V their dimensions, C channels = 2·K·E + H·V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from psyfast.ops.paths import parent_rows, rows_before
from psyfast.ops.records import DeltaRuleWeights, Lane, Pages, in_memory
from psyfast.ops.reference import chunks, linear, normed, operand, rms_norm

CHUNK = 64
L2_EPS = 1e-6


def delta_rule(
    x_TD: Tensor, pages: Pages, weights: DeltaRuleWeights, *, lane: Lane, rows_N: Tensor | None = None
) -> Tensor:
    """Normalised outputs of every row's value heads, o_T(HV); of the ascending rows_N alone where they are given.

    Products of x with the projections take the lane's operands; all that follows is in the type of x. Needs the whole
    batch's tables: not `Pages.at`.
    """
    qkv_TC, log_decay_TH, write_TH = projected(x_TD, weights, lane)
    qkv_TC = short_convolution(qkv_TC, rows_before(pages), weights.conv_CW)
    inputs = Inputs.of(qkv_TC, log_decay_TH, write_TH, weights)
    o_THV = rms_norm(_over_forest(inputs, pages), weights.head_norm)
    return (o_THV if rows_N is None else o_THV[rows_N]).flatten(1)


def projected(x_TD: Tensor, weights: DeltaRuleWeights, lane: Lane) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values before the convolution [T, C], log decay and write strength [T, H]."""
    qkv_proj = operand(in_memory(weights.qkv_proj), lane)
    decay_write_proj = operand(in_memory(weights.decay_write_proj), lane)
    parts = []
    for rows in chunks(x_TD.shape[0]):
        x = normed(x_TD[rows], weights.norm)
        a, b = linear(x, decay_write_proj, lane).chunk(2, dim=-1)
        log_decay = -weights.log_rate_H.to(a.dtype).exp() * functional.softplus(a + weights.time_bias_H.to(a.dtype))
        parts.append((linear(x, qkv_proj, lane), log_decay, b.sigmoid()))
    qkv, log_decay, write = (torch.cat(part) for part in zip(*parts, strict=True))
    return qkv, log_decay, write


def short_convolution(x_TC: Tensor, before_T: Tensor, filter_CW: Tensor) -> Tensor:
    """Silu of a causal filter along each row's path; before_T: each row's predecessor, −1 where its path begins."""
    out = torch.zeros_like(x_TC)
    row_T = torch.arange(len(x_TC), device=x_TC.device)
    for tap in reversed(filter_CW.to(x_TC.dtype).unbind(1)):  # the last one is the row itself
        out += torch.where(row_T[:, None] >= 0, x_TC[row_T], 0) * tap
        row_T = torch.where(row_T >= 0, before_T[row_T], -1)
    return functional.silu(out)


@dataclass(frozen=True)
class Inputs:
    """What the recurrence reads: q and k of unit length, q / √E, both once for each value head."""

    q_THE: Tensor
    k_THE: Tensor
    v_THV: Tensor
    log_decay_TH: Tensor
    write_TH: Tensor

    @classmethod
    def of(cls, qkv_TC: Tensor, log_decay_TH: Tensor, write_TH: Tensor, weights: DeltaRuleWeights) -> Inputs:
        """From the convolved channels."""
        K, H, E, V = weights.num_key_heads, weights.num_value_heads, weights.key_dim, weights.value_dim
        q, k, v = qkv_TC.split([K * E, K * E, H * V], dim=-1)
        q, k = (unit_length(part.unflatten(-1, (K, E))).repeat_interleave(H // K, dim=1) for part in (q, k))
        return cls(q * E**-0.5, k, v.unflatten(-1, (H, V)), log_decay_TH, write_TH)

    def rows(self, rows_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of some rows, a head at a time: q, k [H, R, E], v [H, R, V], log decay and write strength [H, R]."""
        q, k, v = (part[rows_R].transpose(0, 1) for part in (self.q_THE, self.k_THE, self.v_THV))
        return q, k, v, self.log_decay_TH[rows_R].T, self.write_TH[rows_R].T


def unit_length(x: Tensor) -> Tensor:
    """X / sqrt(Σ x² + 1e-6) over the last dimension, as the models were trained."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def _over_forest(inputs: Inputs, pages: Pages) -> Tensor:
    """o_THV, segment after segment; the states at which other segments start are kept, under the row before them."""
    before, parents = rows_before(pages).tolist(), parent_rows(pages).tolist()
    indptr, positions = pages.qo_indptr.tolist(), pages.positions_T[pages.qo_indptr[:-1]].tolist()
    heads = [_chunk_rows(parent, start % CHUNK, before) for parent, start in zip(parents, positions, strict=True)]
    sources = [_last_before(parent, head, before) for parent, head in zip(parents, heads, strict=True)]
    wanted, kept = set(sources), {-1: _no_state(inputs)}
    out = torch.empty_like(inputs.v_THV)
    for segment_idx, (head, source) in enumerate(zip(heads, sources, strict=True)):
        rows, state = [*head, *range(indptr[segment_idx], indptr[segment_idx + 1])], kept[source]
        num_known = len(head)
        for start in range(0, len(rows), CHUNK):
            chunk_rows = rows[start : start + CHUNK]
            rows_R = torch.tensor(chunk_rows, device=out.device)
            o_HRV, state = chunk_step(*inputs.rows(rows_R), state)
            out[rows_R[num_known:]] = o_HRV.transpose(0, 1)[num_known:]
            num_known = 0
            if len(chunk_rows) == CHUNK and chunk_rows[-1] in wanted:
                kept[chunk_rows[-1]] = state
    return out


def _chunk_rows(parent: int, count: int, before: Sequence[int]) -> list[int]:
    """The last `count` rows of a path that ends in `parent`: those of a segment's first chunk which are its ancestors'."""
    rows: list[int] = []
    while len(rows) < count:
        rows.append(parent)
        parent = before[parent]
    return rows[::-1]


def _last_before(parent: int, head: Sequence[int], before: Sequence[int]) -> int:
    """The row before a segment's first chunk, −1 where it begins its path."""
    return before[head[0]] if head else parent


def _no_state(inputs: Inputs) -> Tensor:
    H, E, V = inputs.k_THE.shape[1], inputs.k_THE.shape[2], inputs.v_THV.shape[2]
    return inputs.v_THV.new_zeros(H, E, V)


def chunk_step(
    q_HRE: Tensor, k_HRE: Tensor, v_HRV: Tensor, log_decay_HR: Tensor, write_HR: Tensor, state_HEV: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs [H, R, V] of up to 64 rows that follow a state, and the state after them (the module's equations)."""
    c_HR = log_decay_HR.cumsum(-1)
    between = (c_HR[:, :, None] - c_HR[:, None, :]).tril().exp().tril()
    beta = write_HR[..., None]
    system = (beta * (k_HRE @ k_HRE.transpose(1, 2)) * between).tril(-1)
    right = beta * (v_HRV - c_HR.exp()[..., None] * (k_HRE @ state_HEV))
    u_HRV = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    o_HRV = c_HR.exp()[..., None] * (q_HRE @ state_HEV) + (q_HRE @ k_HRE.transpose(1, 2) * between) @ u_HRV
    last = c_HR[:, -1:]
    decayed = k_HRE * (last - c_HR).exp()[..., None]
    return o_HRV, last.exp()[..., None] * state_HEV + decayed.transpose(1, 2) @ u_HRV
