"""`linear_nll` in plain torch: the oracle that every backend is compared with, and a backend of its own.

    y = x / sqrt(mean(x²) + eps) · weight        logit = cap(scale · y Wᵀ)        nll = lse(logit) − logit[target]

Whatever dtype x has is the dtype of the arithmetic: fp32 for scoring, fp64 for the tests' truth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from psyfast.ops.records import HeadScores, HeadWeights, Lane, in_memory
from psyfast.ops.reference import rms_norm

_CHUNK_LOGITS = 1 << 24  # logits alive at a time: 64 MiB in fp32


def linear_nll(
    x_ND: Tensor, head: HeadWeights, target_N: Tensor, option_ids_NK: Tensor | None = None, *, lane: Lane
) -> HeadScores:
    """Scores N rows in chunks of rows, on x's device; results on the CPU, described at `HeadScores`.

    Lane bf16 rounds both operands to bf16 and multiplies them in x's dtype: torch's own bf16 product would round the
    logits as well. A row with NaN or +inf among its logits yields NaN, and −1 for argmax and rank.
    """
    if option_ids_NK is None:
        option_ids_NK = target_N.new_empty((x_ND.shape[0], 0))
    weight_VD = _operand(in_memory(head.lm_head_VD).to(x_ND.device), lane, x_ND.dtype)
    rows = max(1, _CHUNK_LOGITS // head.lm_head_VD.shape[0])
    chunks = [
        _score(logits_NV, target_n.long(), option_ids_nK.long())
        for logits_NV, target_n, option_ids_nK in (
            (_logits(x_nD, head, weight_VD, lane), target_n.to(x_ND.device), option_ids_nK.to(x_ND.device))
            for x_nD, target_n, option_ids_nK in zip(
                x_ND.split(rows), target_N.split(rows), option_ids_NK.split(rows), strict=True
            )
        )
    ]
    nll, argmax, rank, entropy, option_nll = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return HeadScores(nll_N=nll, argmax_N=argmax, rank_N=rank, entropy_N=entropy, option_nll_NK=option_nll)


def _operand(values: Tensor, lane: Lane, dtype: torch.dtype) -> Tensor:
    return (values.to(torch.bfloat16) if lane is Lane.BF16 else values).to(dtype)


def _logits(x_ND: Tensor, head: HeadWeights, weight_VD: Tensor, lane: Lane) -> Tensor:
    logits_NV = _operand(rms_norm(x_ND, head.norm), lane, x_ND.dtype) @ weight_VD.T * head.scale
    return logits_NV if head.soft_cap is None else head.soft_cap * torch.tanh(logits_NV / head.soft_cap)


def _score(logits_NV: Tensor, target_N: Tensor, option_ids_NK: Tensor) -> tuple[Tensor, ...]:
    lse_N = torch.logsumexp(logits_NV, -1)
    lse_N = torch.where(torch.isfinite(lse_N), lse_N, torch.nan)
    unusable_N = lse_N.isnan()
    target_logit_N = logits_NV.gather(1, target_N[:, None])[:, 0]
    ids_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    larger_NV = logits_NV > target_logit_N[:, None]
    earlier_NV = (logits_NV == target_logit_N[:, None]) & (ids_V < target_N[:, None])
    # torch.argmax promises no order among ties, so the lowest id is taken from the mask of the largest.
    argmax_N = (logits_NV == logits_NV.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
    logprob_NV = logits_NV - lse_N[:, None]
    entropy_N = -(logprob_NV.exp() * logprob_NV.clamp_min(torch.finfo(logprob_NV.dtype).min)).sum(-1)
    option_nll_NK = lse_N[:, None] - logits_NV.gather(1, option_ids_NK.clamp_min(0))
    return (
        (lse_N - target_logit_N).cpu(),
        argmax_N.masked_fill(unusable_N, -1).cpu(),
        (larger_NV | earlier_NV).sum(-1).masked_fill(unusable_N, -1).cpu(),
        entropy_N.masked_fill(unusable_N, torch.nan).cpu(),
        option_nll_NK.masked_fill(option_ids_NK < 0, torch.nan).cpu(),
    )
