"""Native linear_nll and the ISA levels: checks at the boundary, then one call of psyfast._native with raw pointers.

The other operators are in cpu_linear (attn_in, attn_out, mlp) and cpu_attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import native
from psyfast.ops.cpu_packing import pack
from psyfast.ops.native import check, guarded
from psyfast.ops.records import HeadScores, HeadWeights, Lane


@dataclass(frozen=True)
class PackedHead:
    """Final norm and LM head, ready for `linear_nll` on the CPU.

    panels: int32, `[ceil(V/64), D, 64]` fp32 bits (lane fp32) or `[ceil(V/64), ceil(D/2), 64]` pairs of bf16 (lane bf16).
    """

    lane: Lane
    vocab_size: int
    hidden_size: int
    panels: Tensor
    norm_weight_D: Tensor
    eps: float
    unit_offset: bool
    scale: float
    soft_cap: float | None


def isa_name() -> str:
    """The ISA level in use; raises BackendError if PSYFAST_FORCE_ISA names one that is unknown or absent."""
    return guarded(lambda: str(native.load().isa_name()))


def available_isas() -> list[str]:
    """The ISA levels that this machine can run, lowest first."""
    return list(native.load().available_isas())


def checked_isa(name: str) -> str:
    """The name of an ISA level that runs here; BackendError for any other."""
    if name not in available_isas():
        raise BackendError(f"ISA level '{name}' cannot run here; choose one of {', '.join(available_isas())}")
    return name


def pack_head(head: HeadWeights, lane: Lane) -> PackedHead:
    """Packs an LM head once for all later calls; weights are fp32 or bf16 [V, D] on the CPU, for either lane.

    Raises BackendError for anything else.
    """
    if len(head.lm_head_VD.shape) != 2:
        raise BackendError(f"lm_head has shape {list(head.lm_head_VD.shape)}, expected [vocabulary, hidden]")
    vocab_size, hidden_size = head.lm_head_VD.shape
    norm_weight = head.norm.weight_D.to(torch.float32).contiguous()
    check("norm weight", norm_weight, torch.float32, (hidden_size,))
    if head.soft_cap is not None and not 0 < head.soft_cap < float("inf"):
        raise BackendError(f"soft_cap is {head.soft_cap}, expected a positive number, or None for no cap")
    return PackedHead(
        lane=lane,
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        panels=pack("lm_head", head.lm_head_VD, lane),
        norm_weight_D=norm_weight,
        eps=head.norm.eps,
        unit_offset=head.norm.unit_offset,
        scale=head.scale,
        soft_cap=head.soft_cap,
    )


def linear_nll(
    x_ND: Tensor,
    head: PackedHead,
    target_N: Tensor,
    option_ids_NK: Tensor | None = None,
    *,
    num_threads: int | None = None,
    isa: str | None = None,
) -> HeadScores:
    """Scores N rows in one fused pass, never [N, V]; what comes back is described at `HeadScores`.

    x_ND: fp32 hidden rows before the final norm. target_N, option_ids_NK: int64 or int32, options −1 for none, K ≤ 64.
    A row's bits depend on nothing but the row, the head and the ISA level (`isa`; default: the highest, or the forced
    one). A row with NaN or +inf among its logits yields NaN, and −1 for argmax and rank. Raises BackendError for bad
    arguments. num_threads defaults to torch's.
    """
    module = native.load()
    check("x", x_ND, torch.float32, (None, head.hidden_size))
    num_rows = x_ND.shape[0]
    target = _ids("target", target_N, (num_rows,))
    options = None if option_ids_NK is None else _ids("option_ids", option_ids_NK, (num_rows, None))
    num_options = 0 if options is None else options.shape[1]
    scores = HeadScores(
        nll_N=torch.empty(num_rows),
        argmax_N=torch.empty(num_rows, dtype=torch.int64),
        rank_N=torch.empty(num_rows, dtype=torch.int64),
        entropy_N=torch.empty(num_rows),
        option_nll_NK=torch.empty(num_rows, num_options),
    )
    guarded(
        lambda: module.linear_nll(
            x=x_ND.data_ptr(),
            num_rows=num_rows,
            hidden=head.hidden_size,
            norm_weight=head.norm_weight_D.data_ptr(),
            eps=head.eps,
            unit_offset=head.unit_offset,
            panels=head.panels.data_ptr(),
            lane=head.lane.value,
            vocab=head.vocab_size,
            scale=head.scale,
            soft_cap=head.soft_cap or 0.0,
            target=target.data_ptr(),
            option_id=0 if options is None else options.data_ptr(),
            num_options=num_options,
            nll=scores.nll_N.data_ptr(),
            argmax=scores.argmax_N.data_ptr(),
            rank=scores.rank_N.data_ptr(),
            entropy=scores.entropy_N.data_ptr(),
            option_nll=scores.option_nll_NK.data_ptr(),
            num_threads=torch.get_num_threads() if num_threads is None else num_threads,
            isa=isa or "",
        )
    )
    return scores


def _ids(name: str, ids: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    if ids.dtype == torch.int32:
        ids = ids.to(torch.int64)
    check(name, ids, torch.int64, shape)
    return ids
