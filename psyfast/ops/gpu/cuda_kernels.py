"""The CUDA C++ backend's kernels: psyfast._cuda behind the protocol of a GPU backend.

Tensors were checked before; here they become addresses, sizes and the current stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops.gpu.checks import check_delta_limits
from psyfast.ops.gpu.kernel_set import (
    AttentionTiles,
    DeltaPlan,
    DeltaSizes,
    DeviceNorm,
    HeadsShape,
    HeadsTraits,
    ScoreTensors,
)

_OPERAND = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
KEY_PAGES = 1


def load() -> ModuleType:
    """The compiled module; BackendError, with how to build it, where it is not there or cannot be loaded."""
    try:
        return import_module("psyfast._cuda")
    except ImportError as error:
        raise BackendError(
            f"the compiled module psyfast._cuda cannot be loaded ({error}); build it with nvcc (docs/gpu.md), or choose "
            "--backend triton or reference"
        ) from error


class CudaKernels:
    """psyfast.ops.gpu.kernel_set.DeviceKernels. module: another build than psyfast._cuda, such as one for the CPU."""

    name = "cuda"

    def __init__(self, module: ModuleType | None = None) -> None:
        self._module: Any = load() if module is None else module

    def check_delta_sizes(self, sizes: DeltaSizes, num_taps: int) -> None:
        """BackendError for heads above 256 and filters of more than 64 taps."""
        check_delta_limits(self.name, sizes, num_taps, self._module.MAX_DELTA_DIM, self._module.MAX_TAPS)

    def tile_shape(self, head_dim: int, dtype: torch.dtype) -> tuple[int, int]:
        """(query_rows, key_pages); BackendError for a head dimension that the kernel lacks."""
        if not self._module.has_head_dim(head_dim):
            raise BackendError(
                f"the cuda backend has no attention for heads of {head_dim}, expected one of 64, 80, 96, 128, 256; use "
                "--backend reference"
            )
        rows = self._module.FP32_QUERY_ROWS if dtype == torch.float32 else self._module.MMA_QUERY_ROWS
        return int(rows), KEY_PAGES

    def norm_rows(self, x_TD: Tensor, norm: DeviceNorm | None, dtype: torch.dtype) -> Tensor:
        """x_TD fp32, normalised (None: as it is) and rounded to the operand type: y_TD."""
        y_TD = torch.empty(x_TD.shape, dtype=dtype, device=x_TD.device)
        weight, eps, offset = _norm(norm)
        self._call(
            self._module.norm_rows,
            x_TD,
            x=x_TD.data_ptr(),
            y=y_TD.data_ptr(),
            num_rows=x_TD.shape[0],
            width=x_TD.shape[1],
            weight=weight,
            eps=eps,
            unit_offset=offset,
            operand=_OPERAND[dtype],
        )
        return y_TD

    def heads(
        self,
        qkv_TC: Tensor,
        shape: HeadsShape,
        traits: HeadsTraits,
        cos_sin: tuple[Tensor, Tensor] | None,
        positions_T: Tensor,
        slots_T: Tensor | None,
        kv_PKSE: tuple[Tensor, Tensor] | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Bias, norms of q and k, rotary embedding: returns q_THE, writes k and v into the pages."""
        q_THE = torch.empty(qkv_TC.shape[0], shape.num_heads, shape.head_dim, dtype=dtype, device=qkv_TC.device)
        q_weight, q_eps, q_offset = _norm(traits.q_norm)
        k_weight, k_eps, k_offset = _norm(traits.k_norm)
        cos, sin = (None, None) if cos_sin is None else cos_sin
        k_pages, v_pages = (None, None) if kv_PKSE is None else kv_PKSE
        self._call(
            self._module.heads,
            qkv_TC,
            qkv=qkv_TC.data_ptr(),
            bias=_address(traits.bias),
            q_weight=q_weight,
            q_eps=q_eps,
            q_offset=q_offset,
            k_weight=k_weight,
            k_eps=k_eps,
            k_offset=k_offset,
            cos=_address(cos),
            sin=_address(sin),
            positions=positions_T.data_ptr(),
            slots=_address(slots_T),
            q=q_THE.data_ptr(),
            k_pages=_address(k_pages),
            v_pages=_address(v_pages),
            num_rows=qkv_TC.shape[0],
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            num_pairs=0 if cos is None else cos.shape[1],
            norm_together=traits.norm_heads_together,
            operand=_OPERAND[dtype],
        )
        return q_THE

    def copy_slots(self, kv_PKSE: tuple[Tensor, Tensor], runs_R4: Tensor) -> None:
        """Copies slots inside pages, K and V."""
        k_pages, v_pages = kv_PKSE
        self._call(
            self._module.copy_slots,
            k_pages,
            k_pages=k_pages.data_ptr(),
            v_pages=v_pages.data_ptr(),
            runs=runs_R4.data_ptr(),
            num_runs=runs_R4.shape[0],
            num_kv_heads=k_pages.shape[1],
            head_dim=k_pages.shape[3],
            operand=_OPERAND[k_pages.dtype],
        )

    def attention(
        self,
        q_THE: Tensor,
        kv_PKSE: tuple[Tensor, Tensor],
        positions_T: Tensor,
        tiles: AttentionTiles,
        *,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Causal attention of every row over its path, o_T(HE) in the operand type; BackendError for tiles of another shape."""
        T, H, E = q_THE.shape
        query_rows, key_pages = self.tile_shape(E, q_THE.dtype)
        if (tiles.query_rows, tiles.key_pages) != (query_rows, key_pages):
            raise BackendError(
                f"attention got tiles of {tiles.query_rows} query rows and {tiles.key_pages} key pages, expected "
                f"{query_rows} and {key_pages}; plan them by tile_shape({E}, {q_THE.dtype})"
            )
        k_pages, v_pages = kv_PKSE
        o_TO = torch.empty(T, H * E, dtype=q_THE.dtype, device=q_THE.device)
        self._call(
            self._module.attention,
            q_THE,
            q=q_THE.data_ptr(),
            k_pages=k_pages.data_ptr(),
            v_pages=v_pages.data_ptr(),
            o=o_TO.data_ptr(),
            positions=positions_T.data_ptr(),
            sinks=_address(sinks_H),
            num_heads=H,
            num_kv_heads=k_pages.shape[1],
            head_dim=E,
            scale=scale,
            soft_cap=soft_cap or 0.0,
            window=window or 0,
            tile_rows=tiles.rows_I2.data_ptr(),
            bounds=tiles.bounds_I4.data_ptr(),
            index=tiles.index_B.data_ptr(),
            pages=tiles.pages_BJ.data_ptr(),
            block_rows=tiles.block_rows_B2.data_ptr(),
            num_tiles=tiles.rows_I2.shape[0],
            operand=_OPERAND[q_THE.dtype],
        )
        return o_TO

    def short_convolution(self, qkv_TC: Tensor, path_WT: Tensor, taps_WC: Tensor, sizes: DeltaSizes) -> Tensor:
        """Silu of a causal filter along each row's path, q and k then of unit length, q divided by √E."""
        out_TC = torch.empty_like(qkv_TC)
        self._call(
            self._module.short_convolution,
            qkv_TC,
            x=qkv_TC.data_ptr(),
            path=path_WT.data_ptr(),
            taps=taps_WC.data_ptr(),
            y=out_TC.data_ptr(),
            num_rows=len(qkv_TC),
            num_taps=len(taps_WC),
            **asdict(sizes),
        )
        return out_TC

    def delta_rule(
        self, qkv_TC: Tensor, log_decay_TH: Tensor, write_TH: Tensor, plan: DeltaPlan, sizes: DeltaSizes
    ) -> Tensor:
        """The gated delta rule along every path, o_THV."""
        H, E, V = sizes.num_value_heads, sizes.key_dim, sizes.value_dim
        o_THV = qkv_TC.new_empty(len(qkv_TC), H, V)
        states = qkv_TC.new_empty(max(1, plan.num_states), H, E, V)
        most = max((group.num_chunks for group in plan.groups), default=0)
        w, u0, mixing, fading = (qkv_TC.new_empty(most * H * numbers) for numbers in sizes.chunk_numbers)
        for group in plan.groups:
            self._call(
                self._module.delta_rule,
                qkv_TC,
                qkv=qkv_TC.data_ptr(),
                log_decay=log_decay_TH.data_ptr(),
                write=write_TH.data_ptr(),
                rows=plan.rows_N64.data_ptr(),
                chunks=plan.chunks_N2.data_ptr(),
                pieces=plan.pieces_P3.data_ptr(),
                states=states.data_ptr(),
                o=o_THV.data_ptr(),
                w=w.data_ptr(),
                u0=u0.data_ptr(),
                mixing=mixing.data_ptr(),
                fading=fading.data_ptr(),
                **asdict(group),
                **asdict(sizes),
            )
        return o_THV

    def add_rows(self, x_TD: Tensor, y_TD: Tensor, bias_D: Tensor | None, norm: DeviceNorm | None) -> None:
        """X += norm(y + bias), in place, all fp32."""
        weight, eps, offset = _norm(norm)
        self._call(
            self._module.add_rows,
            x_TD,
            x=x_TD.data_ptr(),
            y=y_TD.data_ptr(),
            bias=_address(bias_D),
            num_rows=x_TD.shape[0],
            width=x_TD.shape[1],
            weight=weight,
            eps=eps,
            unit_offset=offset,
        )

    def gated(self, gate_up_TG: Tensor, activation: str, dtype: torch.dtype) -> Tensor:
        """act(gate) · up of [T, 2F] fp32 (gate first), rounded to the operand type: h_TF."""
        num_rows, width = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
        h_TF = torch.empty(num_rows, width, dtype=dtype, device=gate_up_TG.device)
        self._call(
            self._module.gated,
            gate_up_TG,
            gate_up=gate_up_TG.data_ptr(),
            h=h_TF.data_ptr(),
            num_rows=num_rows,
            width=width,
            activation=activation,
            operand=_OPERAND[dtype],
        )
        return h_TF

    def linear_nll(
        self,
        y_ND: Tensor,
        lm_head_VD: Tensor,
        target_N: Tensor,
        option_ids_NK: Tensor,
        *,
        scale: float,
        soft_cap: float | None,
    ) -> ScoreTensors:
        """Scores rows that are normalised already, never [N, V]."""
        (N, D), V, slots = y_ND.shape, lm_head_VD.shape[0], 1 + option_ids_NK.shape[1]
        blocks = -(-V // int(self._module.BLOCK_TOKENS))
        ids_NS = torch.cat([target_N[:, None], option_ids_NK], 1)
        logits_NS, nll_NS = (y_ND.new_empty(N, slots, dtype=torch.float32) for _ in range(2))
        reals = y_ND.new_empty(4, N, blocks, dtype=torch.float32)
        counts = y_ND.new_empty(2, N, blocks, dtype=torch.int32)
        entropy_N = y_ND.new_empty(N, dtype=torch.float32)
        argmax_N, rank_N = (y_ND.new_empty(N, dtype=torch.int64) for _ in range(2))
        self._call(
            self._module.linear_nll,
            y_ND,
            y=y_ND.data_ptr(),
            lm_head=lm_head_VD.data_ptr(),
            ids=ids_NS.data_ptr(),
            num_rows=N,
            hidden=D,
            vocab=V,
            num_slots=slots,
            scale=scale,
            soft_cap=soft_cap or 0.0,
            logits=logits_NS.data_ptr(),
            reals=reals.data_ptr(),
            counts=counts.data_ptr(),
            nll=nll_NS.data_ptr(),
            entropy=entropy_N.data_ptr(),
            argmax=argmax_N.data_ptr(),
            rank=rank_N.data_ptr(),
            operand=_OPERAND[y_ND.dtype],
        )
        return ScoreTensors(nll_NS[:, 0].contiguous(), argmax_N, rank_N, entropy_N, nll_NS[:, 1:].contiguous())

    def _call(self, kernel: Callable[..., None], on: Tensor, **arguments: Any) -> None:
        """Launches on the current stream of a tensor's device; refusals and failed launches become BackendErrors."""
        stream = 0
        try:
            if on.device.type == "cuda":
                with torch.cuda.device(on.device):
                    stream = torch.cuda.current_stream().cuda_stream
                    kernel(**arguments, stream=stream)
            else:
                kernel(**arguments, stream=stream)
        except (ValueError, RuntimeError) as error:  # std::invalid_argument, and what a launch reports
            raise BackendError(f"{kernel.__name__}: {error}") from error


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _norm(norm: DeviceNorm | None) -> tuple[int, float, bool]:
    return (0, 0.0, False) if norm is None else (norm.weight.data_ptr(), norm.eps, norm.unit_offset)
