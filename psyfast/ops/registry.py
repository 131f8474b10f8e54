"""Which backend computes which operator: resolved once, before any work, and written down.

A backend need not have every operator; the rest is `reference`'s, and `Operators.backend_of` says so for each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import reference, reference_delta, reference_experts, reference_head
from psyfast.ops.gpu.availability import GPU_BACKENDS, kernels_of, version_of
from psyfast.ops.records import NOTHING_READY, HeadScores, HeadWeights, Lane, LayerWeights, PreparedLayer, in_memory

FORCE_BACKEND = "PSYFAST_FORCE_BACKEND"
OPERATORS = ("attn_in", "attention", "delta_rule", "attn_out", "mlp", "experts", "linear_nll")
BACKENDS = ("auto", "reference", "cpu", "triton", "cuda")

LinearNll = Callable[[Tensor, Tensor, Tensor], HeadScores]


@dataclass(frozen=True)
class Operators:
    """The seven operators as resolved for a device and a lane.

    `make_linear_nll(head)` prepares the LM head once (packs it, where the backend does) and returns the operator
    over (x_ND, target_N, option_ids_NK). `prepare_layer(layer, num_threads=None, ready={})` likewise brings a layer's weights
    into the form that the operators take, with so many threads (default: torch's); ready: parts by their names that are in that
    form already, of another model's layer, and are taken as they are. `allocate_kv(pages, slots a page, kv heads,
    head_dim)` makes a layer's zeroed K and V pages.
    """

    attn_in: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    delta_rule: Callable[..., Tensor]
    attn_out: Callable[..., None]
    mlp: Callable[..., None]
    experts: Callable[..., None]
    make_linear_nll: Callable[[HeadWeights], LinearNll]
    prepare_layer: Callable[..., PreparedLayer]
    allocate_kv: Callable[[int, int, int, int], tuple[Tensor, Tensor]]
    lane: Lane
    device: torch.device
    backend_of: Mapping[str, str]
    isa: str | None


def resolve(
    backend: str = "auto",
    device: str = "cpu",
    lane: Lane = Lane.BF16,
    *,
    isa: str | None = None,
    join_segments: bool = True,
) -> Operators:
    """Choose a backend for every operator.

    `auto` and `cpu` take native operators where there are some; on a GPU `auto` is `reference`, until the kernels of `triton`
    and `cuda` have run on one (psyfast.ops.gpu.availability). isa: the level they run at (default: the highest, or
    the forced one). join_segments=False keeps the rows of short segments apart in attention: the same bits, slower.
    Raises BackendError for a name, device, level or environment variable that does not fit.
    """
    backend = _forced(backend)
    if backend not in BACKENDS:
        raise BackendError(f"backend '{backend}' is not known: choose one of {', '.join(BACKENDS)}")
    where = _device(device)
    if backend in GPU_BACKENDS:
        if isa is not None:
            raise BackendError(f"ISA level '{isa}' was asked for, but backend '{backend}' has none; leave it out")
        return _on_gpu(backend, lane, where)
    chosen = _reference(lane, where)
    if backend == "cpu" and where.type != "cpu":
        raise BackendError(f"backend 'cpu' cannot run on device '{device}': use --backend reference, or --device cpu")
    if backend == "cpu" or (backend == "auto" and where.type == "cpu"):
        return _with_native(chosen, isa, join_segments)
    if isa is not None:
        raise BackendError(f"ISA level '{isa}' was asked for, but no native operator is in use; leave it out")
    return chosen


def _forced(backend: str) -> str:
    """The wanted backend; where that is `auto`, the environment's. A bad value there raises in any case."""
    forced = os.environ.get(FORCE_BACKEND, "auto")
    if forced not in BACKENDS:
        raise BackendError(f"{FORCE_BACKEND}='{forced}' is not a backend: set it to one of {', '.join(BACKENDS)}")
    return forced if backend == "auto" else backend


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendError(f"device '{name}' is not known: use cpu, cuda, cuda:0, mps …") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device '{name}': torch sees no CUDA device here; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError(f"device '{name}': torch sees no Metal device here; use --device cpu")
    try:
        torch.empty(1, device=device)
    # torch has no error of its own for a device that this build or machine lacks: an index out of range is a
    # RuntimeError, a device without kernels ("meta") a NotImplementedError, which is one, too, and a build without CUDA
    # an AssertionError. Nothing but one allocation is tried, so there is no other fault to hide.
    except (RuntimeError, AssertionError) as error:
        raise BackendError(f"device '{name}' cannot be used: {error}; use --device cpu") from error
    return device


def _reference(lane: Lane, device: torch.device) -> Operators:
    def make_linear_nll(head: HeadWeights) -> LinearNll:
        loaded = replace(head, lm_head_VD=in_memory(head.lm_head_VD))
        return partial(_reference_linear_nll, loaded, lane)

    return Operators(
        attn_in=reference.attn_in,
        attention=reference.attention,
        delta_rule=reference_delta.delta_rule,
        attn_out=reference.attn_out,
        mlp=reference.mlp,
        experts=reference_experts.experts,
        make_linear_nll=make_linear_nll,
        prepare_layer=PreparedLayer.as_loaded,
        allocate_kv=partial(reference.allocate_kv, lane=lane, device=device),
        lane=lane,
        device=device,
        backend_of=dict.fromkeys(OPERATORS, "reference"),
        isa=None,
    )


def _reference_linear_nll(
    head: HeadWeights, lane: Lane, x_ND: Tensor, target_N: Tensor, option_ids_NK: Tensor
) -> HeadScores:
    return reference_head.linear_nll(x_ND, head, target_N, option_ids_NK, lane=lane)


def _on_gpu(backend: str, lane: Lane, device: torch.device) -> Operators:
    from psyfast.ops.gpu.operators import operators_over

    return operators_over(kernels_of(backend, device), lane, device)


def _with_native(operators: Operators, wanted_isa: str | None, join_segments: bool) -> Operators:
    from psyfast.ops import cpu, cpu_attention, cpu_delta, cpu_experts, cpu_linear

    lane = operators.lane
    isa = cpu.isa_name() if wanted_isa is None else cpu.checked_isa(wanted_isa)

    def make_linear_nll(head: HeadWeights) -> LinearNll:
        packed = cpu.pack_head(head, lane)

        def linear_nll(x_ND: Tensor, target_N: Tensor, option_ids_NK: Tensor) -> HeadScores:
            return cpu.linear_nll(x_ND, packed, target_N, option_ids_NK, isa=isa)

        return linear_nll

    def prepare_layer(
        layer: LayerWeights, num_threads: int | None = None, ready: Mapping[str, Any] = NOTHING_READY
    ) -> PreparedLayer:
        def part(name: str, prepare: Callable[[Any, Lane, int | None], Any]) -> Any:
            weights = getattr(layer, name)
            return ready.get(name) if weights is None or name in ready else prepare(weights, lane, num_threads)

        return PreparedLayer(
            attn_in=part("attn_in", cpu_linear.prepare_attn_in),
            attention=layer.attention,
            attn_out=part("attn_out", cpu_linear.prepare_attn_out),
            mlp=part("mlp", cpu_linear.prepare_mlp),
            delta_rule=part("delta_rule", cpu_delta.prepare_delta_rule),
            experts=part("experts", cpu_experts.prepare_experts),
        )

    return Operators(
        attn_in=partial(cpu_linear.attn_in, isa=isa),
        attention=partial(cpu_attention.attention, isa=isa, join_segments=join_segments),
        delta_rule=partial(cpu_delta.delta_rule, isa=isa),
        attn_out=partial(cpu_linear.attn_out, isa=isa),
        mlp=partial(cpu_linear.mlp, isa=isa),
        experts=partial(cpu_experts.experts, isa=isa),
        make_linear_nll=make_linear_nll,
        prepare_layer=prepare_layer,
        allocate_kv=partial(cpu_attention.allocate_kv, lane=lane),
        lane=lane,
        device=operators.device,
        backend_of=dict.fromkeys(OPERATORS, "cpu"),
        isa=isa,
    )


def describe(operators: Operators) -> dict[str, Any]:
    """The resolution as plain data, for `doctor` and the manifest."""
    found = {
        "lane": operators.lane.value,
        "device": str(operators.device),
        "operators": dict(operators.backend_of),
        "isa": operators.isa,
    }
    compiled = {backend: version_of(backend) for backend in GPU_BACKENDS if backend in operators.backend_of.values()}
    return found | ({"compiled_by": compiled} if compiled else {})
