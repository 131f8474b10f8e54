"""A layer's weights as the GPU operators take them: matrices in the lane's operand type, everything else in fp32.

Letters as in kernel_set.py; C the columns of the projection, (H + 2K) · E.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops.delta_sizes import check_delta_rule
from psyfast.ops.expert_sizes import check_experts
from psyfast.ops.gpu.kernel_set import DeltaSizes, DeviceKernels, DeviceNorm, HeadsShape, HeadsTraits
from psyfast.ops.gpu.products import OPERAND
from psyfast.ops.records import (
    NOTHING_READY,
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    DeltaRuleWeights,
    ExpertsWeights,
    HeadWeights,
    Lane,
    LayerWeights,
    Matrix,
    MlpWeights,
    Norm,
    PreparedLayer,
    Rope,
    in_memory,
)
from psyfast.ops.reference import GATES

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class DeviceAttnIn:
    """`attn_in`'s weights: qkv_proj [C, D]; shape and traits of all its columns."""

    norm: DeviceNorm | None
    qkv_proj: Tensor
    shape: HeadsShape
    traits: HeadsTraits
    rope: Rope | None

    @property
    def queries(self) -> tuple[Tensor, HeadsShape, HeadsTraits]:
        """The part of the projection that makes queries."""
        traits, width = self.traits, self.shape.num_heads * self.shape.head_dim
        bias = None if traits.bias is None else traits.bias[:width]
        return self.qkv_proj[:width], replace(self.shape, num_kv_heads=0), replace(traits, bias=bias, k_norm=None)

    @property
    def keys_and_values(self) -> tuple[Tensor, HeadsShape, HeadsTraits]:
        """The part of it that makes keys and values."""
        traits, width = self.traits, self.shape.num_heads * self.shape.head_dim
        bias = None if traits.bias is None else traits.bias[width:]
        return self.qkv_proj[width:], replace(self.shape, num_heads=0), replace(traits, bias=bias, q_norm=None)


@dataclass(frozen=True)
class DeviceGate:
    """The projection of an output's gate, [H·E, D], and its activation."""

    norm: DeviceNorm | None
    proj: Tensor
    activation: str


@dataclass(frozen=True)
class DeviceAttnOut:
    """`attn_out`'s weights: o_proj [D, H·E]."""

    o_proj: Tensor
    bias: Tensor | None
    post_norm: DeviceNorm | None
    gate: DeviceGate | None = None


@dataclass(frozen=True)
class DeviceMlp:
    """`mlp`'s weights: gate_up_proj [2F, D], down_proj [D, F]."""

    norm: DeviceNorm | None
    gate_up_proj: Tensor
    down_proj: Tensor
    activation: str
    post_norm: DeviceNorm | None


@dataclass(frozen=True)
class DeviceExperts:
    """`experts`' weights: router [X, D]; of every expert gate_up_proj [X, 2F, D] and down_proj [X, D, F]."""

    norm: DeviceNorm | None
    router_XD: Tensor
    gate_up_proj: Tensor
    down_proj: Tensor
    num_used: int
    normalised: bool
    activation: str
    router_bias: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


@dataclass(frozen=True)
class DeviceDeltaRule:
    """`delta_rule`'s weights: qkv_proj [C, D], decay_write_proj [2H, D], the filter as [W, C]; rate_H is e^log_rate."""

    norm: DeviceNorm | None
    qkv_proj: Tensor
    decay_write_proj: Tensor
    taps_WC: Tensor
    rate_H: Tensor
    time_bias_H: Tensor
    head_norm: DeviceNorm
    sizes: DeltaSizes


@dataclass(frozen=True)
class DeviceHead:
    """`linear_nll`'s weights."""

    norm: DeviceNorm
    lm_head_VD: Tensor
    scale: float
    soft_cap: float | None


def prepare_layer(
    layer: LayerWeights,
    num_threads: int | None = None,
    ready: Mapping[str, Any] = NOTHING_READY,
    *,
    kernels: DeviceKernels,
    lane: Lane,
) -> PreparedLayer:
    """A layer's weights, where they are (num_threads: there is no work for more). ready: parts that are taken as they are.

    Raises BackendError for weights that do not fit together, and for what the kernels do not have.
    """
    dtype = OPERAND[lane]

    def part(name: str, prepare: Callable[..., Any], *values: Any) -> Any:
        weights = getattr(layer, name)
        return ready.get(name) if weights is None or name in ready else prepare(weights, *values)

    if layer.delta_rule is not None:
        delta = layer.delta_rule
        D, width = delta.qkv_proj.shape[-1], delta.num_value_heads * delta.value_dim
        return PreparedLayer(
            attn_in=None,
            attention=None,
            attn_out=part("attn_out", _attn_out, D, width, dtype),
            mlp=part("mlp", _mlp, D, dtype),
            delta_rule=part("delta_rule", _delta_rule, dtype, kernels),
            experts=part("experts", prepare_experts, D, lane),
        )
    assert layer.attn_in is not None and layer.attention is not None
    attn_in: DeviceAttnIn = part("attn_in", _attn_in, dtype)
    H, E, D = attn_in.shape.num_heads, attn_in.shape.head_dim, attn_in.qkv_proj.shape[1]
    kernels.tile_shape(E, dtype)  # refuses a head size that has no kernel
    return PreparedLayer(
        attn_in=attn_in,
        attention=_attention(layer.attention, H),
        attn_out=part("attn_out", _attn_out, D, H * E, dtype),
        mlp=part("mlp", _mlp, D, dtype),
        experts=part("experts", prepare_experts, D, lane),
    )


def _delta_rule(weights: DeltaRuleWeights, dtype: torch.dtype, kernels: DeviceKernels) -> DeviceDeltaRule:
    K, H, E, V = weights.num_key_heads, weights.num_value_heads, weights.key_dim, weights.value_dim
    C, D = weights.num_channels, weights.qkv_proj.shape[-1]
    check_delta_rule(weights)
    kernels.check_delta_sizes(DeltaSizes(K, H, E, V), weights.conv_CW.shape[1])
    head_norm = _norm("heads' norm", weights.head_norm, V)
    assert head_norm is not None
    return DeviceDeltaRule(
        norm=_norm("delta_rule's norm", weights.norm, D),
        qkv_proj=_matrix("qkv_proj", weights.qkv_proj, (C, D), dtype),
        decay_write_proj=_matrix("decay_write_proj", weights.decay_write_proj, (2 * H, D), dtype),
        taps_WC=weights.conv_CW.float().t().contiguous(),
        rate_H=weights.log_rate_H.float().exp(),
        time_bias_H=weights.time_bias_H.float().contiguous(),
        head_norm=head_norm,
        sizes=DeltaSizes(K, H, E, V),
    )


def _attn_out(weights: AttnOutWeights, hidden_size: int, width: int, dtype: torch.dtype) -> DeviceAttnOut:
    gate = weights.gate
    if gate is not None and gate.activation not in GATES:
        raise BackendError(f"gate activation '{gate.activation}' is not known; choose one of {', '.join(GATES)}")
    return DeviceAttnOut(
        o_proj=_matrix("o_proj", weights.o_proj, (hidden_size, width), dtype),
        bias=_bias(weights, hidden_size),
        post_norm=_norm("attn_out's norm", weights.post_norm, hidden_size),
        gate=None
        if gate is None
        else DeviceGate(
            norm=_norm("gate's norm", gate.norm, hidden_size),
            proj=_matrix("gate", gate.proj, (width, hidden_size), dtype),
            activation=gate.activation,
        ),
    )


def prepare_head(head: HeadWeights, lane: Lane) -> DeviceHead:
    """The LM head, where it is. Raises BackendError for weights that do not fit together."""
    _check_soft_cap(head.soft_cap)
    V, D = head.lm_head_VD.shape
    norm = _norm("final norm", head.norm, D)
    assert norm is not None
    lm_head_VD = _matrix("lm_head", head.lm_head_VD, (V, D), OPERAND[lane])
    return DeviceHead(norm, lm_head_VD, head.scale, head.soft_cap)


def _attn_in(weights: AttnInWeights, dtype: torch.dtype) -> DeviceAttnIn:
    H, K, E = weights.num_heads, weights.num_kv_heads, weights.head_dim
    C, D = (H + 2 * K) * E, weights.qkv_proj.shape[-1]
    if K == 0 or H % K:
        raise BackendError(f"{H} query heads do not share {K} kv heads evenly; check the model's configuration")
    if weights.bias is not None and weights.bias.shape != (C,):
        raise BackendError(f"bias has shape {list(weights.bias.shape)}, expected [{C}]; check the weights")
    if weights.rope is not None and 2 * len(weights.rope.inv_freq) > E:
        raise BackendError(
            f"{len(weights.rope.inv_freq)} pairs turn, expected at most {E // 2}, half a head; check the rotary embedding"
        )
    together = weights.norm_heads_together
    return DeviceAttnIn(
        norm=_norm("attn_in's norm", weights.norm, D),
        qkv_proj=_matrix("qkv_proj", weights.qkv_proj, (C, D), dtype),
        shape=HeadsShape(H, K, E),
        traits=HeadsTraits(
            bias=None if weights.bias is None else weights.bias.float().contiguous(),
            q_norm=_norm("q_norm", weights.q_norm, H * E if together else E),
            k_norm=_norm("k_norm", weights.k_norm, K * E if together else E),
            norm_heads_together=together,
        ),
        rope=weights.rope,
    )


def _attention(params: AttentionParams, num_heads: int) -> AttentionParams:
    _check_soft_cap(params.soft_cap)
    if params.window is not None and params.window < 1:
        raise BackendError(f"window is {params.window}, expected 1 or more, or None for all positions")
    if params.sinks_H is None:
        return params
    if params.sinks_H.shape != (num_heads,):
        raise BackendError(f"sinks have shape {list(params.sinks_H.shape)}, expected [{num_heads}]; check the weights")
    return replace(params, sinks_H=params.sinks_H.float().contiguous())


def prepare_experts(weights: ExpertsWeights, hidden_size: int, lane: Lane) -> DeviceExperts:
    """A layer's experts, where they are. Raises BackendError for weights that do not fit together."""
    dtype = OPERAND[lane]
    D, F = hidden_size, weights.down_proj[0].shape[-1] if weights.down_proj else 0
    check_experts(weights, D, F)
    return DeviceExperts(
        norm=_norm("experts' norm", weights.norm, D),
        router_XD=_matrix("router", weights.router, (weights.router.shape[0], D), dtype),
        gate_up_proj=_stacked(weights.gate_up_proj, dtype),
        down_proj=_stacked(weights.down_proj, dtype),
        num_used=weights.num_used,
        normalised=weights.normalised,
        activation=weights.activation,
        router_bias=_fp32(weights.router_bias),
        gate_up_bias=_fp32(weights.gate_up_bias),
        down_bias=_fp32(weights.down_bias),
    )


def _fp32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _mlp(weights: MlpWeights, hidden_size: int, dtype: torch.dtype) -> DeviceMlp:
    if weights.activation not in ACTIVATIONS:
        raise BackendError(f"activation '{weights.activation}' has no kernel; choose one of {', '.join(ACTIVATIONS)}")
    F = weights.down_proj.shape[-1]
    return DeviceMlp(
        norm=_norm("mlp's norm", weights.norm, hidden_size),
        gate_up_proj=_matrix("gate_up_proj", weights.gate_up_proj, (2 * F, hidden_size), dtype),
        down_proj=_matrix("down_proj", weights.down_proj, (hidden_size, F), dtype),
        activation=weights.activation,
        post_norm=_norm("mlp's post-norm", weights.post_norm, hidden_size),
    )


def _matrix(name: str, matrix: Matrix, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    if tuple(matrix.shape) != shape:
        raise BackendError(f"{name} has shape {list(matrix.shape)}, expected {list(shape)}; check the weights")
    return in_memory(matrix).to(dtype).contiguous()


def _stacked(matrices: Sequence[Matrix], dtype: torch.dtype) -> Tensor:
    """Matrices of one shape, read one after the other into one tensor."""
    first = in_memory(matrices[0])
    stacked = torch.empty(len(matrices), *first.shape, dtype=dtype, device=first.device)
    stacked[0] = first
    for place, matrix in enumerate(matrices[1:], start=1):
        stacked[place] = in_memory(matrix)
    return stacked


def _bias(weights: AttnOutWeights, hidden_size: int) -> Tensor | None:
    if weights.bias is None:
        return None
    if weights.bias.shape != (hidden_size,):
        raise BackendError(f"bias has shape {list(weights.bias.shape)}, expected [{hidden_size}]; check the weights")
    return weights.bias.float().contiguous()


def _norm(name: str, norm: Norm | None, size: int) -> DeviceNorm | None:
    if norm is None:
        return None
    if norm.weight_D.shape != (size,):
        raise BackendError(f"{name} has shape {list(norm.weight_D.shape)}, expected [{size}]; check the weights")
    return DeviceNorm(norm.weight_D.float().contiguous(), norm.eps, norm.unit_offset)


def _check_soft_cap(soft_cap: float | None) -> None:
    if soft_cap is not None and not 0 < soft_cap < float("inf"):
        raise BackendError(f"soft_cap is {soft_cap}, expected a positive number, or None for no cap")
