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
)

ROWS_A_CHUNK = 4096
ROWS_A_TILE = 256

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


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


def rotate(x_THE: Tensor, positions_T: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding (Su et al. 2021) with the pairs (i, i + half), angles in fp32 as the models were trained."""
    angles = positions_T.to(rope.inv_freq.dtype)[:, None] * rope.inv_freq
    cos = (angles.cos() * rope.attention_scale)[:, None].to(x_THE.dtype)
    sin = (angles.sin() * rope.attention_scale)[:, None].to(x_THE.dtype)
    num_pairs = rope.inv_freq.shape[0]
    a, b, rest = x_THE.split([num_pairs, num_pairs, x_THE.shape[-1] - 2 * num_pairs], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def attn_in(x_TD: Tensor, pages: Pages, weights: AttnInWeights, *, lane: Lane) -> Tensor:
    """q_THE of all tokens; their K and V are written into the pages, and the heads of forked pages copied."""
    H, K, E = weights.num_heads, weights.num_kv_heads, weights.head_dim
    q_THE = x_TD.new_empty(x_TD.shape[0], H, E)
    flat_k, flat_v = pages.k_PSKE.view(-1, K, E), pages.v_PSKE.view(-1, K, E)
    for rows in _chunks(x_TD.shape[0]):
        qkv = linear(rms_norm(x_TD[rows], weights.norm), weights.qkv_proj, lane)
        if weights.bias is not None:
            qkv = qkv + weights.bias.to(qkv.dtype)
        q, k, v = qkv.split([H * E, K * E, K * E], dim=-1)
        q, k, v = q.unflatten(-1, (H, E)), k.unflatten(-1, (K, E)), v.unflatten(-1, (K, E))
        if weights.q_norm is not None:
            q = rms_norm(q, weights.q_norm)
        if weights.k_norm is not None:
            k = rms_norm(k, weights.k_norm)
        if weights.rope is not None:
            positions = pages.positions_T[rows]
            q, k = rotate(q, positions, weights.rope), rotate(k, positions, weights.rope)
        q_THE[rows] = q
        flat_k[pages.slots_T[rows]] = k.to(flat_k.dtype)
        flat_v[pages.slots_T[rows]] = v.to(flat_v.dtype)
    flat_k[pages.copy_to] = flat_k[pages.copy_from]
    flat_v[pages.copy_to] = flat_v[pages.copy_from]
    return q_THE


def attention(q_THE: Tensor, pages: Pages, params: AttentionParams, *, lane: Lane) -> Tensor:
    """Causal attention of every token over its path: o_T(HE).

    A tile of rows may belong to many segments: it reads the union of their pages, and a mask gives each row the
    pages of its own path up to its own position.
    """
    T, H, E = q_THE.shape
    out = q_THE.new_empty(T, H, E)
    page_slots = torch.arange(pages.k_PSKE.shape[1], device=q_THE.device)
    for rows, segment_start, segment_stop in _tiles(pages.qo_indptr.tolist()):
        page_ids, member_SP = _pages_of_segments(pages, segment_start, segment_stop)
        positions_R = pages.positions_T[rows]
        first_key = pages.page_index_P[page_ids] * len(page_slots)
        reached = first_key <= positions_R.max()
        page_ids, first_key, member_SP = page_ids[reached], first_key[reached], member_SP[:, reached]
        key_positions = (first_key[:, None] + page_slots).flatten()
        row_idx = torch.arange(rows.start, rows.stop, device=q_THE.device)
        segment_R = torch.searchsorted(pages.qo_indptr[segment_start + 1 : segment_stop], row_idx, right=True)
        mask_RC = member_SP[segment_R].repeat_interleave(len(page_slots), dim=1)
        mask_RC &= key_positions <= positions_R[:, None]
        if params.window is not None:
            mask_RC &= key_positions > positions_R[:, None] - params.window
        k_KCE = pages.k_PSKE[page_ids].flatten(0, 1).transpose(0, 1).to(q_THE.dtype)
        v_KCE = pages.v_PSKE[page_ids].flatten(0, 1).transpose(0, 1).to(q_THE.dtype)
        q_HRE = operand(q_THE[rows], lane).transpose(0, 1)
        out[rows] = _attend(q_HRE, k_KCE, v_KCE, mask_RC, params).transpose(0, 1)
    return out.flatten(1)


def _attend(q_HRE: Tensor, k_KCE: Tensor, v_KCE: Tensor, mask_RC: Tensor, params: AttentionParams) -> Tensor:
    """Softmax attention of R rows over C keys; keys that the mask hides weigh nothing, whatever they hold."""
    group = q_HRE.shape[0] // k_KCE.shape[0]
    k_HCE, v_HCE = k_KCE.repeat_interleave(group, 0), v_KCE.repeat_interleave(group, 0)
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
    """X += post_norm(o · o_projᵀ + bias), in place."""
    for rows in _chunks(x_TD.shape[0]):
        y = linear(o[rows], weights.o_proj, lane)
        if weights.bias is not None:
            y = y + weights.bias.to(y.dtype)
        x_TD[rows] += y if weights.post_norm is None else rms_norm(y, weights.post_norm)


def mlp(x_TD: Tensor, weights: MlpWeights, *, lane: Lane) -> None:
    """X += post_norm(down(act(gate) · up)), in place, a chunk of rows at a time."""
    activation = ACTIVATIONS[weights.activation]
    for rows in _chunks(x_TD.shape[0]):
        gate, up = linear(rms_norm(x_TD[rows], weights.norm), weights.gate_up_proj, lane).chunk(2, dim=-1)
        y = linear(activation(gate) * up, weights.down_proj, lane)
        x_TD[rows] += y if weights.post_norm is None else rms_norm(y, weights.post_norm)


def _chunks(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, ROWS_A_CHUNK):
        yield slice(start, min(start + ROWS_A_CHUNK, num_rows))


def _tiles(qo_indptr: list[int]) -> Iterator[tuple[slice, int, int]]:
    """Tiles of at most ROWS_A_TILE rows and the segments [start, stop) they touch; only whole segments share a tile."""
    segment_idx, num_segments = 0, len(qo_indptr) - 1
    while segment_idx < num_segments:
        start = qo_indptr[segment_idx]
        stop_idx = segment_idx + 1
        while stop_idx < num_segments and qo_indptr[stop_idx + 1] - start <= ROWS_A_TILE:
            stop_idx += 1
        stop = qo_indptr[stop_idx]
        for row in range(start, stop, ROWS_A_TILE):
            yield slice(row, min(row + ROWS_A_TILE, stop)), segment_idx, stop_idx
        segment_idx = stop_idx


def _pages_of_segments(pages: Pages, segment_start: int, segment_stop: int) -> tuple[Tensor, Tensor]:
    """The distinct pages of some segments, and which segment (row) has which (column)."""
    indptr = pages.kv_indptr[segment_start : segment_stop + 1]
    listed = pages.kv_indices[indptr[0] : indptr[-1]]
    page_ids, column = listed.unique(return_inverse=True)
    owner = torch.repeat_interleave(torch.arange(segment_stop - segment_start, device=listed.device), indptr.diff())
    member_SP = torch.zeros(segment_stop - segment_start, len(page_ids), dtype=torch.bool, device=listed.device)
    member_SP[owner, column] = True
    return page_ids, member_SP
