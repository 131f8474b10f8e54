"""The operators over a backend's kernels: torch's products between them, memory in chunks, checks at the door.

attn_in     norm_rows · product · heads (writes K and V) · copy_slots
attention   tiles of the batch · attention
attn_out    product · add_rows; before them, where there is a gate: norm_rows · product · torch's activation
delta_rule  norm_rows · products · short_convolution · delta_rule · norm_rows of the heads
mlp         norm_rows · product · gated · product · add_rows
experts     norm_rows · product, torch's choice; for each expert: product · gated · product, torch's sum
linear_nll  norm_rows · linear_nll
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from psyfast.errors import BackendError
from psyfast.ops.gpu.checks import check_tensor, check_within, check_writes
from psyfast.ops.gpu.delta_plan import delta_plan_of
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS, DeviceKernels, HeadsShape, HeadsTraits, ScoreTensors
from psyfast.ops.gpu.prepared import (
    DeviceAttnIn,
    DeviceAttnOut,
    DeviceDeltaRule,
    DeviceExperts,
    DeviceGate,
    DeviceHead,
    DeviceMlp,
    prepare_head,
    prepare_layer,
)
from psyfast.ops.gpu.products import OPERAND, TEMPORARY_BYTES, chunks, product
from psyfast.ops.gpu.tiles import tiles_of
from psyfast.ops.paths import tap_rows
from psyfast.ops.records import AttentionParams, HeadScores, HeadWeights, Lane, Pages
from psyfast.ops.reference import GATES
from psyfast.ops.reference_experts import CLAMPED_SWIGLU, biased, choose_experts, gated, row_of
from psyfast.ops.registry import OPERATORS, LinearNll, Operators

MAX_OPTION_COLUMNS = 64
HEAD_BLOCK = 64
"""The narrowest vocabulary block that kernels are expected to keep partial results of: for the size of their memory."""
PARTIAL_BYTES = 24


def operators_over(kernels: DeviceKernels, lane: Lane, device: torch.device) -> Operators:
    """All operators over some kernels, for a lane, on the kernels' device."""
    ours = DeviceOperators(kernels, lane, device)
    return Operators(
        attn_in=ours.attn_in,
        attention=ours.attention,
        delta_rule=ours.delta_rule,
        attn_out=ours.attn_out,
        mlp=ours.mlp,
        experts=ours.experts,
        make_linear_nll=ours.make_linear_nll,
        prepare_layer=partial(prepare_layer, kernels=kernels, lane=lane),
        allocate_kv=ours.allocate_kv,
        lane=lane,
        device=device,
        backend_of=dict.fromkeys(OPERATORS, kernels.name),
        isa=None,
    )


@dataclass(frozen=True)
class DeviceOperators:
    """The operators as DESIGN's table has them. Every one raises BackendError for what does not fit, before a launch."""

    kernels: DeviceKernels
    lane: Lane
    device: torch.device

    @property
    def operand(self) -> torch.dtype:
        """The type of a product's operands."""
        return OPERAND[self.lane]

    def allocate_kv(self, num_pages: int, page_slots: int, num_kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Zeroed pages of K and of V, [pages, K, 64, E], in the operand type."""
        if page_slots != PAGE_SLOTS:
            raise BackendError(f"pages have {page_slots} slots, expected {PAGE_SLOTS}; use --backend reference")
        shape = (num_pages, num_kv_heads, PAGE_SLOTS, head_dim)
        k, v = (torch.zeros(shape, dtype=self.operand, device=self.device) for _ in range(2))
        return k, v

    def attn_in(
        self, x_TD: Tensor, pages: Pages, weights: DeviceAttnIn, *, lane: Lane, rows_N: Tensor | None = None
    ) -> Tensor:
        """Writes K and V of all tokens into the pages, copies the heads of forked pages, returns q_THE (operand type).

        rows_N: ascending indices of the tokens whose queries are wanted; then q_NHE is theirs.
        """
        self._check(lane, x_TD, weights.qkv_proj.shape[1])
        self._check_pages(pages, weights.shape)
        self._check_rows(pages, len(x_TD))
        whole = weights.qkv_proj, weights.shape, weights.traits
        if rows_N is None:
            q_THE = self._projected(x_TD, pages, pages.positions_T, weights, whole, writes=True)
        else:
            self._projected(x_TD, pages, pages.positions_T, weights, weights.keys_and_values, writes=True)
            positions_N = pages.positions_T[rows_N]
            q_THE = self._projected(x_TD[rows_N], pages, positions_N, weights, weights.queries, writes=False)
        if len(pages.copy_runs_R4):
            self.kernels.copy_slots((pages.k, pages.v), pages.copy_runs_R4)
        return q_THE

    def _projected(
        self,
        x_TD: Tensor,
        pages: Pages,
        positions_T: Tensor,
        weights: DeviceAttnIn,
        part: tuple[Tensor, HeadsShape, HeadsTraits],
        *,
        writes: bool,
    ) -> Tensor:
        """Queries of one part of the projection, its k and v written where it has some."""
        proj_CD, shape, traits = part
        kv_PKSE = (pages.k, pages.v) if writes else None
        cos_sin = None if weights.rope is None else pages.rope_tables.cos_sin(weights.rope)
        parts = [x_TD.new_empty(0, shape.num_heads, shape.head_dim, dtype=self.operand)]
        for rows in chunks(len(x_TD), 4 * len(proj_CD)):
            qkv_TC = product(self.kernels.norm_rows(x_TD[rows], weights.norm, self.operand), proj_CD)
            slots_T = pages.slots_T[rows] if writes else None
            parts.append(
                self.kernels.heads(qkv_TC, shape, traits, cos_sin, positions_T[rows], slots_T, kv_PKSE, self.operand)
            )
        return parts[1] if len(parts) == 2 else torch.cat(parts)

    def attention(self, q_THE: Tensor, pages: Pages, params: AttentionParams, *, lane: Lane) -> Tensor:
        """Causal attention of every query over its path: o_T(HE) in the operand type."""
        self._check_lane(lane)
        T, H, E = q_THE.shape
        check_tensor("q", q_THE, self.device, self.operand, (T, H, E))
        self._check_pages(pages, HeadsShape(H, pages.k.shape[1], E))
        check_tensor("positions_T", pages.positions_T, q_THE.device, torch.int64, (T,))
        if T == 0:
            return q_THE.new_empty(0, H * E)
        tiles = tiles_of(pages, *self.kernels.tile_shape(E, self.operand), params.window)
        return self.kernels.attention(
            q_THE,
            (pages.k, pages.v),
            pages.positions_T,
            tiles,
            scale=params.scale,
            window=params.window,
            soft_cap=params.soft_cap,
            sinks_H=params.sinks_H,
        )

    def attn_out(self, o: Tensor, x_TD: Tensor, weights: DeviceAttnOut, *, lane: Lane) -> None:
        """X += post_norm((gate · o) · o_projᵀ + bias), in place."""
        D, width = weights.o_proj.shape
        self._check(lane, x_TD, D)
        check_tensor("o", o, x_TD.device, self.operand, (len(x_TD), width))
        for rows in chunks(len(x_TD), 4 * (D + (0 if weights.gate is None else 2 * width))):
            gated = o[rows] if weights.gate is None else self._gated(o[rows], x_TD[rows], weights.gate)
            self.kernels.add_rows(x_TD[rows], product(gated, weights.o_proj), weights.bias, weights.post_norm)

    def _gated(self, o: Tensor, x_TD: Tensor, gate: DeviceGate) -> Tensor:
        before = product(self.kernels.norm_rows(x_TD, gate.norm, self.operand), gate.proj)
        return (GATES[gate.activation](before) * o).to(self.operand)

    def delta_rule(
        self, x_TD: Tensor, pages: Pages, weights: DeviceDeltaRule, *, lane: Lane, rows_N: Tensor | None = None
    ) -> Tensor:
        """Normalised outputs of the value heads, o_T(HV) in the operand type; of the ascending rows_N where they are given."""
        self._check(lane, x_TD, weights.qkv_proj.shape[1])
        self._check_rows(pages, len(x_TD))
        sizes, kernels = weights.sizes, self.kernels
        H, V = sizes.num_value_heads, sizes.value_dim
        if len(x_TD) == 0:
            return x_TD.new_empty(0, H * V, dtype=self.operand)
        plan = delta_plan_of(pages, sizes.chunks_within(TEMPORARY_BYTES))
        qkv_TC, log_decay_TH, write_TH = self._delta_inputs(x_TD, weights)
        qkv_TC = kernels.short_convolution(qkv_TC, tap_rows(pages, len(weights.taps_WC)), weights.taps_WC, sizes)
        o_THV = kernels.delta_rule(qkv_TC, log_decay_TH, write_TH, plan, sizes)
        o_NHV = o_THV if rows_N is None else o_THV[rows_N]
        return kernels.norm_rows(o_NHV.view(-1, V), weights.head_norm, self.operand).view(-1, H * V)

    def _delta_inputs(self, x_TD: Tensor, weights: DeviceDeltaRule) -> tuple[Tensor, Tensor, Tensor]:
        """Channels before their filter [T, C], log decay and write strength [T, H]."""
        parts = []
        for rows in chunks(len(x_TD), 4 * len(weights.qkv_proj)):
            y_TD = self.kernels.norm_rows(x_TD[rows], weights.norm, self.operand)
            a_TH, b_TH = product(y_TD, weights.decay_write_proj).chunk(2, dim=1)
            log_decay_TH = -weights.rate_H * functional.softplus(a_TH + weights.time_bias_H)
            parts.append((product(y_TD, weights.qkv_proj), log_decay_TH, b_TH.sigmoid()))
        if len(parts) == 1:
            return parts[0]
        qkv_TC, log_decay_TH, write_TH = (torch.cat(part) for part in zip(*parts, strict=True))
        return qkv_TC, log_decay_TH, write_TH

    def mlp(self, x_TD: Tensor, weights: DeviceMlp, *, lane: Lane) -> None:
        """X += post_norm(down(act(gate) · up)), in place."""
        G, D = weights.gate_up_proj.shape
        self._check(lane, x_TD, D)
        for rows in chunks(len(x_TD), 4 * (G + D)):
            y_TD = self.kernels.norm_rows(x_TD[rows], weights.norm, self.operand)
            h_TF = self.kernels.gated(product(y_TD, weights.gate_up_proj), weights.activation, self.operand)
            self.kernels.add_rows(x_TD[rows], product(h_TF, weights.down_proj), None, weights.post_norm)

    def experts(self, x_TD: Tensor, weights: DeviceExperts, *, lane: Lane) -> None:
        """X += the weighted sum of each token's experts, in ascending order of experts, in place."""
        X, D = weights.router_XD.shape
        self._check(lane, x_TD, D)
        G = weights.gate_up_proj.shape[1]
        for rows in chunks(len(x_TD), 4 * (X + G + 2 * D)):
            h_TD = self.kernels.norm_rows(x_TD[rows], weights.norm, self.operand)
            logits_TX = biased(product(h_TD, weights.router_XD), weights.router_bias)
            chosen_TU, weight_TU = choose_experts(logits_TX, weights.num_used, weights.normalised)
            sum_TD = torch.zeros_like(x_TD[rows])
            for expert in chosen_TU.unique().tolist():
                token, place = (chosen_TU == expert).nonzero(as_tuple=True)
                # no token comes twice, so that the sum's order is the experts'
                sum_TD[token] += weight_TU[token, place, None] * self._expert(h_TD[token], weights, expert)
            x_TD[rows] += sum_TD

    def _expert(self, h_TD: Tensor, weights: DeviceExperts, expert: int) -> Tensor:
        """One expert of normalised rows, in fp32."""
        before_TG = biased(product(h_TD, weights.gate_up_proj[expert]), row_of(weights.gate_up_bias, expert))
        if weights.activation == CLAMPED_SWIGLU:
            gate_TF, up_TF = before_TG.chunk(2, dim=1)
            gated_TF = gated(gate_TF, up_TF, weights.activation).to(self.operand)
        else:
            gated_TF = self.kernels.gated(before_TG, weights.activation, self.operand)
        return biased(product(gated_TF, weights.down_proj[expert]), row_of(weights.down_bias, expert))

    def make_linear_nll(self, head: HeadWeights) -> LinearNll:
        """`linear_nll` over a head that is prepared once."""
        return partial(self._linear_nll, prepare_head(head, self.lane))

    def _linear_nll(self, head: DeviceHead, x_ND: Tensor, target_N: Tensor, option_ids_NK: Tensor) -> HeadScores:
        """Scores N rows; ids on the host, where they are checked, results on the CPU."""
        V, D = head.lm_head_VD.shape
        N = len(x_ND)
        check_tensor("x", x_ND, self.device, torch.float32, (None, D))
        target_N, option_ids_NK = target_N.cpu().long().contiguous(), option_ids_NK.cpu().long().contiguous()
        check_tensor("target", target_N, torch.device("cpu"), torch.int64, (N,))
        check_tensor("option_ids", option_ids_NK, torch.device("cpu"), torch.int64, (N, None))
        check_within("target", target_N.numpy(), V)
        check_within("option_ids", option_ids_NK.numpy(), V, start=-1)
        if option_ids_NK.shape[1] > MAX_OPTION_COLUMNS:
            raise BackendError(f"a row has {option_ids_NK.shape[1]} options, expected at most {MAX_OPTION_COLUMNS}")
        target_N, option_ids_NK = target_N.to(x_ND.device), option_ids_NK.to(x_ND.device)
        row_bytes = PARTIAL_BYTES * -(-V // HEAD_BLOCK)
        parts = [
            self.kernels.linear_nll(
                self.kernels.norm_rows(x_ND[rows], head.norm, self.operand),
                head.lm_head_VD,
                target_N[rows],
                option_ids_NK[rows],
                scale=head.scale,
                soft_cap=head.soft_cap,
            )
            for rows in chunks(N, row_bytes)
        ]
        return _on_host(parts, option_ids_NK.shape[1])

    def _check_lane(self, lane: Lane) -> None:
        if lane is not self.lane:
            raise BackendError(f"lane is {lane.value}, expected {self.lane.value}, for which the weights were prepared")

    def _check(self, lane: Lane, x_TD: Tensor, hidden_size: int) -> None:
        self._check_lane(lane)
        check_tensor("x", x_TD, self.device, torch.float32, (None, hidden_size))

    def _check_rows(self, pages: Pages, num_rows: int) -> None:
        check_tensor("positions_T", pages.positions_T, self.device, torch.int64, (num_rows,))
        if "writes_checked" not in pages.derived:
            check_writes(pages)
            pages.derived["writes_checked"] = True

    def _check_pages(self, pages: Pages, shape: HeadsShape) -> None:
        of_page = (shape.num_kv_heads, PAGE_SLOTS, shape.head_dim)
        check_tensor("pages of K", pages.k, self.device, self.operand, (None, *of_page))
        check_tensor("pages of V", pages.v, self.device, self.operand, (len(pages.k), *of_page))


def _on_host(parts: list[ScoreTensors], num_options: int) -> HeadScores:
    """The chunks' results as one, on the CPU."""
    if not parts:
        none, ids = torch.empty(0), torch.empty(0, dtype=torch.int64)
        return HeadScores(none, ids, ids.clone(), none.clone(), torch.empty(0, num_options))

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts]).cpu()

    return HeadScores(
        nll_N=joined("nll_N"),
        argmax_N=joined("argmax_N"),
        rank_N=joined("rank_N"),
        entropy_N=joined("entropy_N"),
        option_nll_NK=joined("option_nll_NK"),
    )
