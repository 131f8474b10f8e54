"""Native attention over packed pages: allocation, checks at the boundary, then one call of psyfast._native."""

from __future__ import annotations

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import native
from psyfast.ops.native import check, guarded
from psyfast.ops.records import AttentionParams, Lane, Pages

PAGE_SLOTS = 64
PANEL_COLUMNS = 64
OPERAND = {Lane.FP32: torch.float32, Lane.BF16: torch.bfloat16}


def page_shapes(num_kv_heads: int, head_dim: int, lane: Lane) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of one page of K and of V in 32-bit words (csrc/kv_pages.h)."""
    a_word = 1 if lane is Lane.FP32 else 2
    k = (num_kv_heads, -(-head_dim // a_word), PANEL_COLUMNS)
    v = (num_kv_heads, -(-head_dim // PANEL_COLUMNS), PAGE_SLOTS // a_word, PANEL_COLUMNS)
    return k, v


def allocate_kv(
    num_pages: int, page_slots: int, num_kv_heads: int, head_dim: int, *, lane: Lane
) -> tuple[Tensor, Tensor]:
    """Zeroed packed pages of K and V, int32. Raises BackendError for another page size than the kernels'."""
    if page_slots != PAGE_SLOTS:
        raise BackendError(f"pages have {page_slots} slots, expected {PAGE_SLOTS}; use --backend reference")
    k, v = page_shapes(num_kv_heads, head_dim, lane)
    return torch.zeros(num_pages, *k, dtype=torch.int32), torch.zeros(num_pages, *v, dtype=torch.int32)


def attention(
    q_THE: Tensor,
    pages: Pages,
    params: AttentionParams,
    *,
    lane: Lane,
    join_segments: bool = True,
    num_threads: int | None = None,
    isa: str | None = None,
) -> Tensor:
    """Causal attention of every query over its path: o_T(HE) in the lane's operand type, as q_THE.

    A query's bits depend on its row, its keys and the ISA level alone. join_segments=False keeps the rows of short
    segments in tiles of their own: slower, the same bits. Raises BackendError for bad arguments.
    """
    T, H, E = q_THE.shape
    num_pages, K = pages.k.shape[:2]
    k_shape, v_shape = page_shapes(K, E, lane)
    check("q", q_THE, OPERAND[lane], (None, None, None))
    check("pages of K", pages.k, torch.int32, (None, *k_shape))
    check("pages of V", pages.v, torch.int32, (num_pages, *v_shape))
    check("positions", pages.positions_T, torch.int64, (T,))
    num_segments = len(pages.kv_indptr) - 1
    check("qo_indptr", pages.qo_indptr, torch.int64, (num_segments + 1,))
    check("kv_indptr", pages.kv_indptr, torch.int64, (None,))
    check("kv_indices", pages.kv_indices, torch.int64, (int(pages.kv_indptr[-1]),))
    sinks = None if params.sinks_H is None else params.sinks_H.float().contiguous()
    if sinks is not None:
        check("sinks", sinks, torch.float32, (H,))
    out = torch.empty(T, H * E, dtype=q_THE.dtype)
    module = native.load()
    guarded(
        lambda: module.attention(
            q=q_THE.data_ptr(),
            out=out.data_ptr(),
            lane=lane.value,
            num_queries=T,
            num_heads=H,
            k=pages.k.data_ptr(),
            v=pages.v.data_ptr(),
            num_pages=num_pages,
            num_kv_heads=K,
            head_dim=E,
            position=pages.positions_T.data_ptr(),
            qo_indptr=pages.qo_indptr.data_ptr(),
            kv_indptr=pages.kv_indptr.data_ptr(),
            kv_indices=pages.kv_indices.data_ptr(),
            num_segments=num_segments,
            scale=params.scale,
            soft_cap=params.soft_cap or 0.0,
            window=params.window or 0,
            sinks=0 if sinks is None else sinks.data_ptr(),
            join_segments=join_segments,
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            isa=isa or "",
        )
    )
    return out
