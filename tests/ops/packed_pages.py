"""Pages of the reference in the native layout, and back (csrc/kv_pages.h)."""

import torch
from torch import Tensor

from psyfast.ops.records import Lane


def pack_pages(k_PSKE: Tensor, v_PSKE: Tensor, lane: Lane) -> tuple[Tensor, Tensor]:
    """The int32 tensors that native attention reads, from pages [P, S, K, E] in the lane's operand type."""
    P, S, K, E = k_PSKE.shape
    columns = -(-E // 64) * 64
    v_PSKC = torch.zeros(P, S, K, columns, dtype=v_PSKE.dtype)
    v_PSKC[..., :E] = v_PSKE
    if lane is Lane.FP32:
        k = k_PSKE.permute(0, 2, 3, 1)
        v = v_PSKC.permute(0, 2, 1, 3).unflatten(-1, (columns // 64, 64)).transpose(2, 3)
    else:
        padded = torch.zeros(P, S, K, E + E % 2, dtype=k_PSKE.dtype)
        padded[..., :E] = k_PSKE
        k = padded.unflatten(-1, (-1, 2)).permute(0, 2, 3, 1, 4)
        v = v_PSKC.permute(0, 2, 1, 3).unflatten(-1, (columns // 64, 64)).unflatten(2, (S // 2, 2))
        v = v.permute(0, 1, 4, 2, 5, 3)
    k, v = k.contiguous().view(torch.int32), v.contiguous().view(torch.int32)
    return (k, v) if lane is Lane.FP32 else (k.squeeze(-1), v.squeeze(-1))


def unpack_pages(k: Tensor, v: Tensor, head_dim: int, lane: Lane) -> tuple[Tensor, Tensor]:
    """Pages [P, S, K, E] in the lane's operand type, from the native layout."""
    if lane is Lane.FP32:
        k_PKES, v_PKCSc = k.view(torch.float32), v.view(torch.float32)
        v_PSKC = v_PKCSc.transpose(2, 3).flatten(3).transpose(1, 2)
        return k_PKES.permute(0, 3, 1, 2), v_PSKC[..., :head_dim]
    k_pairs = k.unsqueeze(-1).view(torch.bfloat16)  # [P, K, E/2, S, 2]
    k_PSKE = k_pairs.permute(0, 3, 1, 2, 4).flatten(3)[..., :head_dim]
    v_pairs = v.unsqueeze(-1).view(torch.bfloat16)  # [P, K, panels, S/2, 64, 2]
    v_PSKC = v_pairs.permute(0, 3, 5, 1, 2, 4).flatten(1, 2).flatten(3)
    return k_PSKE, v_PSKC[..., :head_dim]
