"""`experts` in plain torch: a router chooses a few of many MLPs for each token, and their weighted sum joins the residual.

    p = softmax(norm(x) Wᵀ + b)        x += Σ w_e · down_e(act(gate_e h) · up_e h),   h = norm(x)

over the token's U likeliest experts; w is p, or p over its sum where the weights are normalised (Shazeer et al. 2017,
Muennighoff et al. 2024); gate, up and down may have biases. Letters: T tokens, X experts, U used by a token, D hidden, F feed-forward width of an expert.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from psyfast.ops.records import ExpertsWeights, Lane, in_memory
from psyfast.ops.reference import ACTIVATIONS, chunks, linear, normed

CLAMPED_SWIGLU = "clamped_swiglu"


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """What an expert's down projection is of. `clamped_swiglu` (gpt-oss): gate is at most 7, up within ±7."""
    if activation != CLAMPED_SWIGLU:
        return ACTIVATIONS[activation](gate) * up
    gate = gate.clamp(max=7.0)
    return (up.clamp(-7.0, 7.0) + 1) * gate * torch.sigmoid(1.702 * gate)


def choose_experts(logits_TX: Tensor, num_used: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """Each row's experts, int64 [T, U] in ascending order, those of the largest logits; and their weights [T, U]."""
    shares_TX = torch.softmax(logits_TX, dim=-1)
    chosen_TU = torch.sort(logits_TX, dim=-1, descending=True, stable=True).indices[:, :num_used].sort(dim=-1).values
    weight_TU = shares_TX.gather(1, chosen_TU)
    if normalised:
        weight_TU = weight_TU / reduce(torch.add, weight_TU.unbind(1))[:, None]
    return chosen_TU, weight_TU


def experts(x_TD: Tensor, weights: ExpertsWeights, *, lane: Lane) -> None:
    """X += the weighted sum of each token's experts, in place."""
    router_XD = in_memory(weights.router)
    for rows in chunks(len(x_TD)):
        h_TD = normed(x_TD[rows], weights.norm)
        logits_TX = biased(linear(h_TD, router_XD, lane), weights.router_bias)
        chosen_TU, weight_TU = choose_experts(logits_TX, weights.num_used, weights.normalised)
        sum_TD = torch.zeros_like(h_TD)
        for expert in chosen_TU.unique().tolist():
            token, place = (chosen_TU == expert).nonzero(as_tuple=True)
            both = linear(h_TD[token], in_memory(weights.gate_up_proj[expert]), lane)
            gate, up = biased(both, row_of(weights.gate_up_bias, expert)).chunk(2, dim=-1)
            y = linear(gated(gate, up, weights.activation), in_memory(weights.down_proj[expert]), lane)
            y = biased(y, row_of(weights.down_bias, expert))
            sum_TD[token] += weight_TU[token, place, None] * y
        x_TD[rows] += sum_TD


def row_of(bias: Tensor | None, expert: int) -> Tensor | None:
    """An expert's bias, where there is one."""
    return None if bias is None else bias[expert]


def biased(y: Tensor, bias: Tensor | None) -> Tensor:
    """The sum with a bias, where there is one."""
    return y if bias is None else y + bias.to(y.dtype)
