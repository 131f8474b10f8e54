"""The operators in plain torch: obvious, for any device, the oracle of every other backend.

The lane rounds a product's operands (to bf16, or not at all); the product itself is always computed in fp32, since
torch's own bf16 product also rounds the result. Shapes are in the names: T tokens, D hidden, H query heads, K kv
heads, E head dimension, F feed-forward width, P pages, S slots a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    Lane,
    MlpWeights,
    Norm,
    Pages,
    Rope,
    in_memory,
)

ROWS_A_CHUNK = 4096
ROWS_A_TILE = 256

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "silu": functional.silu}


def operand(x: Tensor, lane: Lane) -> Tensor:
    """A product's operand: fp32 values, rounded to bf16 in the bf16 lane (fp64 stays fp64: the tests' truth)."""
    if lane is Lane.BF16:
        x = x.bfloat16()
    return x if x.dtype == torch.float64 else x.float()


def linear(x_TD: Tensor, weight_OD: Tensor, lane: Lane) -> Tensor:
    """X · weightᵀ with the lane's operands, in fp32."""
    return operand(x_TD, lane) @ operand(weight_OD, lane).T


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """RMSNorm over the last dimension (Zhang and Sennrich 2019), in the type of x."""
    scale = norm.weight_D.to(x.dtype) + (1.0 if norm.unit_offset else 0.0)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * scale


def normed(x: Tensor, norm: Norm | None) -> Tensor:
    """RMSNorm, or x where there is none."""
    return x if norm is None else rms_norm(x, norm)


def rotate(x_THE: Tensor, positions_T: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding (Su et al. 2021) with the pairs (i, i + half), angles in fp32 as the models were trained."""
    angles = positions_T.to(rope.inv_freq.dtype)[:, None] * rope.inv_freq
    cos = (angles.cos() * rope.attention_scale)[:, None].to(x_THE.dtype)
    sin = (angles.sin() * rope.attention_scale)[:, None].to(x_THE.dtype)
    num_pairs = rope.inv_freq.shape[0]
    a, b, rest = x_THE.split([num_pairs, num_pairs, x_THE.shape[-1] - 2 * num_pairs], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def allocate_kv(
    num_pages: int, page_slots: int, num_kv_heads: int, head_dim: int, *, lane: Lane, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Zeroed pages of K and of V, [pages, slots, kv heads, head_dim], in the lane's operand type."""
    dtype = torch.bfloat16 if lane is Lane.BF16 else torch.float32
    shape = (num_pages, page_slots, num_kv_heads, head_dim)
    return torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device)


def attn_in(x_TD: Tensor, pages: Pages, weights: AttnInWeights, *, lane: Lane, rows_N: Tensor | None = None) -> Tensor:
    """Writes K and V of all tokens into the pages, copies the heads of forked pages, and returns q_THE.

    rows_N: ascending indices of the tokens whose queries are wanted; then q_NHE is theirs. None: all.
    """
    H, K, E = weights.num_heads, weights.num_kv_heads, weights.head_dim
    q_THE = x_TD.new_empty(x_TD.shape[0], H, E)
    flat_k, flat_v = pages.k.view(-1, K, E), pages.v.view(-1, K, E)
    qkv_proj = operand(in_memory(weights.qkv_proj), lane)
    for rows in chunks(x_TD.shape[0]):
        qkv = linear(normed(x_TD[rows], weights.norm), qkv_proj, lane)
        if weights.bias is not None:
            qkv = qkv + weights.bias.to(qkv.dtype)
        q, k, v = qkv.split([H * E, K * E, K * E], dim=-1)
        if weights.norm_heads_together:
            q, k = normed(q, weights.q_norm), normed(k, weights.k_norm)
        q, k, v = q.unflatten(-1, (H, E)), k.unflatten(-1, (K, E)), v.unflatten(-1, (K, E))
        if not weights.norm_heads_together:
            q, k = normed(q, weights.q_norm), normed(k, weights.k_norm)
        if weights.rope is not None:
            positions = pages.positions_T[rows]
            q, k = rotate(q, positions, weights.rope), rotate(k, positions, weights.rope)
        q_THE[rows] = q
        flat_k[pages.slots_T[rows]] = k.to(flat_k.dtype)
        flat_v[pages.slots_T[rows]] = v.to(flat_v.dtype)
    flat_k[pages.copy_to] = flat_k[pages.copy_from]
    flat_v[pages.copy_to] = flat_v[pages.copy_from]
    return q_THE if rows_N is None else q_THE[rows_N]


def attention(q_THE: Tensor, pages: Pages, params: AttentionParams, *, lane: Lane) -> Tensor:
    """Causal attention of every token over its path: o_T(HE).

    A group is one long segment or several short ones; it reads the union of their pages, in order of position, and a
    mask gives each row the pages of its own path up to its own position. Tiles of a group bound the memory of the mask.
    """
    T, H, E = q_THE.shape
    out = q_THE.new_empty(T, H, E)
    S = pages.k.shape[1]
    repeat = H // pages.k.shape[2]
    for rows, segment_start, segment_stop in _groups(pages.qo_indptr.tolist()):
        page_ids, member_SP = _pages_of_segments(pages, segment_start, segment_stop)
        key_positions = (pages.page_index_P[page_ids][:, None] * S + torch.arange(S, device=q_THE.device)).flatten()
        k_HCE, v_HCE = (
            kv[page_ids].flatten(0, 1).transpose(0, 1).to(q_THE.dtype).repeat_interleave(repeat, 0)
            for kv in (pages.k, pages.v)
        )
        lengths = pages.qo_indptr[segment_start : segment_stop + 1].diff()
        segment_R = torch.repeat_interleave(torch.arange(len(lengths), device=q_THE.device), lengths)
        for start in range(rows.start, rows.stop, ROWS_A_TILE):
            tile = slice(start, min(start + ROWS_A_TILE, rows.stop))
            positions_R = pages.positions_T[tile]
            reach = S * int((key_positions[::S] <= positions_R.max()).sum())  # pages stand in order of position
            mask_RC = key_positions[:reach] <= positions_R[:, None]
            if len(lengths) > 1:
                of_row = segment_R[tile.start - rows.start : tile.stop - rows.start]
                mask_RC &= member_SP[of_row, : reach // S].repeat_interleave(S, dim=1)
            if params.window is not None:
                mask_RC &= key_positions[:reach] > positions_R[:, None] - params.window
            q_HRE = operand(q_THE[tile], lane).transpose(0, 1)
            out[tile] = _attend(q_HRE, k_HCE[:, :reach], v_HCE[:, :reach], mask_RC, params).transpose(0, 1)
    return out.flatten(1)


def _attend(q_HRE: Tensor, k_HCE: Tensor, v_HCE: Tensor, mask_RC: Tensor, params: AttentionParams) -> Tensor:
    """Softmax attention of R rows over C keys of which a mask hides some."""
    if params.soft_cap is None and params.sinks_H is None:
        attended: Tensor = functional.scaled_dot_product_attention(
            q_HRE[None], k_HCE[None], v_HCE[None], attn_mask=mask_RC, scale=params.scale
        )[0]
        return attended
    scores_HRC = q_HRE @ k_HCE.transpose(1, 2) * params.scale
    if params.soft_cap is not None:
        scores_HRC = params.soft_cap * torch.tanh(scores_HRC / params.soft_cap)
    scores_HRC = scores_HRC.masked_fill(~mask_RC, -torch.inf)
    if params.sinks_H is not None:
        sinks = params.sinks_H.to(scores_HRC.dtype)[:, None, None].expand(-1, scores_HRC.shape[1], 1)
        weights = torch.cat([scores_HRC, sinks], -1).softmax(-1)[..., :-1]
    else:
        weights = scores_HRC.softmax(-1)
    return weights @ v_HCE


def attn_out(o: Tensor, x_TD: Tensor, weights: AttnOutWeights, *, lane: Lane) -> None:
    """X += post_norm((gate · o) · o_projᵀ + bias), in place; the gate is 1, or of x as it was (`OutputGate`)."""
    o_proj = operand(in_memory(weights.o_proj), lane)
    gate = weights.gate
    gate_proj = None if gate is None else operand(in_memory(gate.proj), lane)
    for rows in chunks(x_TD.shape[0]):
        gated = o[rows]
        if gate is not None and gate_proj is not None:
            gated = gated * GATES[gate.activation](linear(normed(x_TD[rows], gate.norm), gate_proj, lane))
        y = linear(gated, o_proj, lane)
        if weights.bias is not None:
            y = y + weights.bias.to(y.dtype)
        x_TD[rows] += normed(y, weights.post_norm)


def mlp(x_TD: Tensor, weights: MlpWeights, *, lane: Lane) -> None:
    """X += post_norm(down(act(gate) · up)), in place, a chunk of rows at a time."""
    activation = ACTIVATIONS[weights.activation]
    gate_up_proj = operand(in_memory(weights.gate_up_proj), lane)
    down_proj = operand(in_memory(weights.down_proj), lane)
    for rows in chunks(x_TD.shape[0]):
        gate, up = linear(normed(x_TD[rows], weights.norm), gate_up_proj, lane).chunk(2, dim=-1)
        x_TD[rows] += normed(linear(activation(gate) * up, down_proj, lane), weights.post_norm)


def chunks(num_rows: int) -> Iterator[slice]:
    """Rows a chunk at a time, so that intermediates stay small."""
    for start in range(0, num_rows, ROWS_A_CHUNK):
        yield slice(start, min(start + ROWS_A_CHUNK, num_rows))


def _groups(qo_indptr: list[int]) -> Iterator[tuple[slice, int, int]]:
    """Rows and segments [start, stop) that are computed together: one segment, or short ones of a tile in all."""
    segment_idx, num_segments = 0, len(qo_indptr) - 1
    while segment_idx < num_segments:
        start = qo_indptr[segment_idx]
        stop_idx = segment_idx + 1
        while stop_idx < num_segments and qo_indptr[stop_idx + 1] - start <= ROWS_A_TILE:
            stop_idx += 1
        yield slice(start, qo_indptr[stop_idx]), segment_idx, stop_idx
        segment_idx = stop_idx


def _pages_of_segments(pages: Pages, segment_start: int, segment_stop: int) -> tuple[Tensor, Tensor]:
    """The distinct pages of some segments in order of position, and which segment (row) has which (column)."""
    indptr = pages.kv_indptr[segment_start : segment_stop + 1]
    listed = pages.kv_indices[indptr[0] : indptr[-1]]
    page_ids = listed.unique()
    page_ids = page_ids[pages.page_index_P[page_ids].argsort(stable=True)]
    column_of = torch.empty(len(pages.page_index_P), dtype=torch.int64, device=listed.device)
    column_of[page_ids] = torch.arange(len(page_ids), device=listed.device)
    owner = torch.repeat_interleave(torch.arange(segment_stop - segment_start, device=listed.device), indptr.diff())
    member_SP = torch.zeros(segment_stop - segment_start, len(page_ids), dtype=torch.bool, device=listed.device)
    member_SP[owner, column_of[listed]] = True
    return page_ids, member_SP
