"""What the kernels are timed beside: torch's own, and FlashInfer's and Liger's where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.gpu_check.attention_problems import Attention
from bench.gpu_check.head_problems import Head
from bench.gpu_check.oracle import IN_TORCH
from bench.gpu_check.problems import AddRows, CopySlots, Gated, NormRows, Problem
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Contender:
    """Somebody else's way to the same result: as_output(call()) is compared with the output `output`; `call` is timed."""

    name: str
    output: str
    call: Call
    as_output: Callable[[Tensor], Tensor] = lambda result: result


NAMES = ("torch", "FlashInfer", "Liger")


def others(problem: Problem, usable: tuple[str, ...] = NAMES) -> list[Contender]:
    """Those among `usable` that know the problem and are installed; torch always is."""
    if isinstance(problem, Head):
        return [_torch_head(problem), *(_liger_head(problem) if "Liger" in usable else ())]
    if isinstance(problem, Attention):
        return [*_torch_attention(problem), *(_flashinfer(problem) if "FlashInfer" in usable else ())]
    if isinstance(problem, NormRows) and problem.norm is not None:
        weight, eps = problem.norm.weight, problem.norm.eps
        x, width = problem.x_TD, (problem.x_TD.shape[1],)
        return [Contender("torch", "y", lambda: functional.rms_norm(x, width, weight, eps).to(problem.dtype))]
    if isinstance(problem, Gated):
        gate, up = problem.gate_up_TG.chunk(2, -1)
        return [Contender("torch", "h", lambda: functional.silu(gate).mul_(up).to(problem.dtype))]
    if isinstance(problem, AddRows) and problem.norm is None and problem.bias_D is None:
        return [Contender("torch", "x", lambda: problem.x_TD + problem.y_TD)]
    if isinstance(problem, CopySlots):
        return []
    return [Contender("torch", "q", lambda: problem.run(IN_TORCH)["q"])]


def _flat(out: Tensor) -> Tensor:
    return out.flatten(1)


def _torch_head(problem: Head) -> Contender:
    """Matmul, log-softmax, gather: what one writes without a fused kernel, logits in bf16 as torch's product gives them."""

    def call() -> Tensor:
        logits_NV = functional.linear(problem.y_ND, problem.lm_head_VD).float()
        return -logits_NV.log_softmax(-1).gather(1, problem.target_N[:, None])[:, 0]

    return Contender("torch", "nll", call)


def _liger_head(problem: Head) -> list[Contender]:
    """Fused linear and cross entropy, made for training: it computes gradients only where they are asked for."""
    if find_spec("liger_kernel") is None:
        return []
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")

    def call() -> Tensor:
        found: Tensor = loss(problem.lm_head_VD, problem.y_ND, problem.target_N)
        return found

    return [Contender("Liger", "nll", call)]


def _equal_segments(problem: Attention) -> tuple[Tensor, Tensor] | None:
    """K and V [segments, T, K, E] where all segments are roots of one length; None for a forest, which has no such form."""
    tables = problem.tables
    lengths = np.diff(tables.qo_indptr)
    if len(set(lengths.tolist())) > 1 or len(tables.kv_indices) != tables.num_pages or problem.window is not None:
        return None
    order = torch.from_numpy(tables.kv_indices).to(problem.k.device)
    k, v = (
        pages[order].transpose(1, 2).reshape(len(lengths), -1, pages.shape[1], pages.shape[3])[:, : lengths[0]]
        for pages in (problem.k, problem.v)
    )
    return k.contiguous(), v.contiguous()


def _torch_attention(problem: Attention) -> list[Contender]:
    """scaled_dot_product_attention, keys and values repeated for their heads outside of what is timed."""
    found = _equal_segments(problem)
    if found is None:
        return []
    repeat = problem.q_THE.shape[1] // problem.k.shape[1]
    k, v = (x.transpose(1, 2).repeat_interleave(repeat, 1).contiguous() for x in found)
    q = problem.q_THE.view(len(k), -1, *problem.q_THE.shape[1:]).transpose(1, 2).contiguous()

    def call() -> Tensor:
        out: Tensor = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=problem.scale)
        return out

    def rows(out: Tensor) -> Tensor:
        return out.transpose(1, 2).flatten(0, 1).flatten(1)

    return [Contender("torch", "o", call, rows)]


def _flashinfer(problem: Attention) -> list[Contender]:
    """Prefill over pages, each branch with its whole path; its plan is made outside of what is timed, as our tiles are."""
    if find_spec("flashinfer") is None or problem.q_THE.dtype == torch.float32:
        return []
    import flashinfer

    q = problem.q_THE
    tables = problem.tables
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
    lasts = tables.positions[tables.qo_indptr[1:] - 1] % PAGE_SLOTS + 1
    indptr, kv_indptr, indices, last_page_len = (
        torch.from_numpy(array).int().to(q.device)
        for array in (tables.qo_indptr, tables.kv_indptr, tables.kv_indices, lasts)
    )
    wrapper.plan(
        indptr,
        kv_indptr,
        indices,
        last_page_len,
        q.shape[1],
        problem.k.shape[1],
        q.shape[2],
        PAGE_SLOTS,
        causal=True,
        sm_scale=problem.scale,
        q_data_type=q.dtype,
    )
    return [Contender("FlashInfer", "o", lambda: wrapper.run(q, (problem.k, problem.v)), _flat)]
