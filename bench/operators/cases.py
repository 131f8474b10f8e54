"""Each operator on random weights of a model's shape: natively, by the reference, and as one would write it in torch.

A problem builds its operands once. `native(isa)`, `reference()` and `torch()` return calls to time; `error(isa)` is the
native result's distance to the reference's on a sample of rows, relative, root mean squares.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from shapes import Shape
from torch import Tensor
from torch.nn import functional

from psyfast.engine import allocate_pages
from psyfast.model.traits import RopeTraits, Traits
from psyfast.ops import cpu, cpu_attention, cpu_experts, cpu_linear, reference, reference_experts, reference_head
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    ExpertsWeights,
    HeadWeights,
    Lane,
    MlpWeights,
    Norm,
    Pages,
    Rope,
)
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from tests.ops.packed_pages import pack_pages, unpack_pages

DTYPE = {Lane.FP32: torch.float32, Lane.BF16: torch.bfloat16}
# bf16: an operand on a tie may round the other way after another order of sums, and results may be bf16 themselves.
TOLERANCE = {Lane.FP32: 1e-5, Lane.BF16: 1e-2}
CHECKED_ROWS = 48
EPS = 1e-5

Call = Callable[[], object]


def matrix(rows: int, inner: int, lane: Lane) -> Tensor:
    """Weights that keep the size of what they multiply, as a model of the lane stores them."""
    return (torch.randn(rows, inner) / inner**0.5).to(DTYPE[lane])


def sample(num_rows: int) -> Tensor:
    """Rows to check: the first, the last, and some between."""
    return torch.linspace(0, num_rows - 1, min(num_rows, CHECKED_ROWS)).long().unique()


def distance(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference over that of what is wanted; infinite where anything is not finite."""
    error = (got.double() - want.double()).square().mean().sqrt() / want.double().square().mean().sqrt()
    return error.item() if error.isfinite() else float("inf")


class Problem:
    """What all have in common: sizes, weights' norm, rows and their pages."""

    name: str
    flop: float

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        self.shape, self.lane, self.num_tokens = shape, lane, num_tokens
        self.num_rows = num_tokens
        self.x_TD = torch.randn(num_tokens, shape.D)
        self.norm = Norm(torch.rand(shape.D) + 0.5, EPS)
        self.rows = sample(num_tokens)

    def pages(self, backend: str) -> Pages:
        """Of one sequence, as long as the batch."""
        s = self.shape
        traits = Traits("bench", 1, s.D, s.F, s.H, s.K, s.E, s.V, self.num_tokens, EPS, RopeTraits())
        batch = plan_batch([Request(np.arange(self.num_tokens + 1), np.array([self.num_tokens]))]).batch
        return allocate_pages(batch.pages, batch.positions_T, traits, resolve(backend, "cpu", self.lane))

    def torch_norm(self, x: Tensor) -> Tensor:
        """RMSNorm as torch has it, in the lane's type."""
        return functional.rms_norm(x, (self.shape.D,), self.norm.weight_D.to(x.dtype), EPS)


class AttnIn(Problem):
    """Norm, projection of q, k and v, rotary embedding, and K and V into pages."""

    name = "attn_in"

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        super().__init__(shape, lane, num_tokens)
        num_columns = (shape.H + 2 * shape.K) * shape.E
        self.flop = 2.0 * num_tokens * shape.D * num_columns
        qkv_proj = matrix(num_columns, shape.D, lane)
        rope = Rope(RopeTraits().inv_freq(shape.E))
        self.weights = AttnInWeights(self.norm, qkv_proj, None, shape.H, shape.K, shape.E, rope)
        self.packed = cpu_linear.prepare_attn_in(self.weights, lane)
        self.native_pages = self.pages("cpu")

    def native(self, isa: str) -> Call:
        return lambda: cpu_linear.attn_in(self.x_TD, self.native_pages, self.packed, lane=self.lane, isa=isa)

    def reference(self) -> Call:
        pages = self.pages("reference")
        return lambda: reference.attn_in(self.x_TD, pages, self.weights, lane=self.lane)

    def torch(self) -> Call:
        x, weight, s = self.x_TD.to(DTYPE[self.lane]), self.weights.qkv_proj, self.shape
        angles = torch.arange(self.num_tokens)[:, None, None] * RopeTraits().inv_freq(s.E)
        cos, sin = (t.repeat(1, 1, 2).to(x.dtype) for t in (angles.cos(), angles.sin()))

        def rotated(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat([-b, a], -1) * sin

        def call() -> object:
            q, k, v = functional.linear(self.torch_norm(x), weight).unflatten(1, (-1, s.E)).split([s.H, s.K, s.K], 1)
            return rotated(q), rotated(k), v

        return call

    def error(self, isa: str) -> float:
        q = cpu_linear.attn_in(self.x_TD, self.native_pages, self.packed, lane=self.lane, isa=isa)
        pages = self.pages("reference")
        want = reference.attn_in(self.x_TD, pages, self.weights, lane=self.lane)
        k, v = unpack_pages(self.native_pages.k, self.native_pages.v, self.shape.E, self.lane)
        return max(distance(q, want), distance(k, pages.k), distance(v, pages.v))


class Attention(Problem):
    """Causal attention of one sequence."""

    name = "attention"

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        super().__init__(shape, lane, num_tokens)
        self.flop = 4.0 * shape.E * shape.H * num_tokens * (num_tokens + 1) / 2
        self.params = AttentionParams(scale=shape.E**-0.5)
        self.q_THE = torch.randn(num_tokens, shape.H, shape.E).to(DTYPE[lane])
        self.plain_pages = self.pages("reference")
        self.plain_pages.k.normal_()
        self.plain_pages.v.normal_()
        self.native_pages = self.pages("cpu")
        packed = pack_pages(self.plain_pages.k, self.plain_pages.v, lane)
        for page, values in zip((self.native_pages.k, self.native_pages.v), packed, strict=True):
            page.copy_(values)

    def native(self, isa: str) -> Call:
        return lambda: cpu_attention.attention(self.q_THE, self.native_pages, self.params, lane=self.lane, isa=isa)

    def reference(self) -> Call:
        q = self.q_THE.float()
        return lambda: reference.attention(q, self.plain_pages, self.params, lane=self.lane)

    def torch(self) -> Call:
        repeat = self.shape.H // self.shape.K
        k, v = (
            pages.flatten(0, 1)[: self.num_tokens].transpose(0, 1).repeat_interleave(repeat, 0)[None].contiguous()
            for pages in (self.plain_pages.k, self.plain_pages.v)
        )
        q = self.q_THE.transpose(0, 1)[None].contiguous()
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def error(self, isa: str) -> float:
        got = cpu_attention.attention(self.q_THE, self.native_pages, self.params, lane=self.lane, isa=isa)
        some = self.q_THE[self.rows].float()
        want = reference.attention(some, self.plain_pages.at(self.rows), self.params, lane=self.lane)
        return distance(got[self.rows], want)


class AttnOut(Problem):
    """Output projection and residual."""

    name = "attn_out"

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        super().__init__(shape, lane, num_tokens)
        width = shape.H * shape.E
        self.flop = 2.0 * num_tokens * shape.D * width
        self.weights = AttnOutWeights(matrix(shape.D, width, lane))
        self.packed = cpu_linear.prepare_attn_out(self.weights, lane)
        self.o = torch.randn(num_tokens, width).to(DTYPE[lane])

    def native(self, isa: str) -> Call:
        x = self.x_TD.clone()
        return lambda: cpu_linear.attn_out(self.o, x, self.packed, lane=self.lane, isa=isa)

    def reference(self) -> Call:
        o, x = self.o.float(), self.x_TD.clone()
        return lambda: reference.attn_out(o, x, self.weights, lane=self.lane)

    def torch(self) -> Call:
        x = self.x_TD.to(DTYPE[self.lane])
        return lambda: x.add_(functional.linear(self.o, self.weights.o_proj))

    def error(self, isa: str) -> float:
        got, want = torch.zeros_like(self.x_TD), torch.zeros(len(self.rows), self.shape.D)
        cpu_linear.attn_out(self.o, got, self.packed, lane=self.lane, isa=isa)
        reference.attn_out(self.o[self.rows].float(), want, self.weights, lane=self.lane)
        return distance(got[self.rows], want)


class Mlp(Problem):
    """Norm, gate and up projection, activation, down projection, residual."""

    name = "mlp"

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        super().__init__(shape, lane, num_tokens)
        self.flop = 2.0 * num_tokens * 3 * shape.D * shape.F
        gate_up_proj, down_proj = matrix(2 * shape.F, shape.D, lane), matrix(shape.D, shape.F, lane)
        self.weights = MlpWeights(self.norm, gate_up_proj, down_proj)
        self.packed = cpu_linear.prepare_mlp(self.weights, lane)

    def native(self, isa: str) -> Call:
        x = self.x_TD.clone()
        return lambda: cpu_linear.mlp(x, self.packed, lane=self.lane, isa=isa)

    def reference(self) -> Call:
        x = self.x_TD.clone()
        return lambda: reference.mlp(x, self.weights, lane=self.lane)

    def torch(self) -> Call:
        x = self.x_TD.to(DTYPE[self.lane])

        def call() -> object:
            gate, up = functional.linear(self.torch_norm(x), self.weights.gate_up_proj).chunk(2, -1)
            return x.add_(functional.linear(functional.silu(gate).mul_(up), self.weights.down_proj))

        return call

    def error(self, isa: str) -> float:
        before, got = self.x_TD[self.rows], self.x_TD.clone()
        want = before.clone()
        cpu_linear.mlp(got, self.packed, lane=self.lane, isa=isa)
        reference.mlp(want, self.weights, lane=self.lane)
        return distance(got[self.rows] - before, want - before)


class Experts(Problem):
    """Norm, router, the experts that each token uses, their weighted sum, residual."""

    name = "experts"

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        super().__init__(shape, lane, num_tokens)
        self.flop = 2.0 * num_tokens * shape.D * (3 * shape.F + shape.X)
        width = shape.F // shape.U
        self.weights = ExpertsWeights(
            self.norm,
            matrix(shape.X, shape.D, lane),
            tuple(matrix(2 * width, shape.D, lane) for _ in range(shape.X)),
            tuple(matrix(shape.D, width, lane) for _ in range(shape.X)),
            shape.U,
            normalised=True,
        )
        self.packed = cpu_experts.prepare_experts(self.weights, lane)

    def native(self, isa: str) -> Call:
        x = self.x_TD.clone()
        return lambda: cpu_experts.experts(x, self.packed, lane=self.lane, isa=isa)

    def reference(self) -> Call:
        x = self.x_TD.clone()
        return lambda: reference_experts.experts(x, self.weights, lane=self.lane)

    def torch(self) -> Call:
        x = self.x_TD.to(DTYPE[self.lane])

        def call() -> object:
            h, out = self.torch_norm(x), torch.zeros_like(x)
            weight, chosen = functional.linear(h, self.weights.router).softmax(-1).topk(self.shape.U)
            weight /= weight.sum(-1, keepdim=True)
            for expert in range(self.shape.X):
                token, place = (chosen == expert).nonzero(as_tuple=True)
                gate, up = functional.linear(h[token], self.weights.gate_up_proj[expert]).chunk(2, -1)
                y = functional.linear(functional.silu(gate).mul_(up), self.weights.down_proj[expert])
                out.index_add_(0, token, y * weight[token, place, None])
            return x.add_(out)

        return call

    def error(self, isa: str) -> float:
        before, got = self.x_TD[self.rows], self.x_TD.clone()
        want = before.clone()
        cpu_experts.experts(got, self.packed, lane=self.lane, isa=isa)
        reference_experts.experts(want, self.weights, lane=self.lane)
        return distance(got[self.rows] - before, want - before)


class LinearNll(Problem):
    """Final norm, LM head and log-softmax of a quarter of the rows, 2,000 at most."""

    name = "linear_nll"

    def __init__(self, shape: Shape, lane: Lane, num_tokens: int) -> None:
        super().__init__(shape, lane, min(2000, max(1, num_tokens // 4)))
        self.flop = 2.0 * self.num_rows * shape.D * shape.V
        self.head = HeadWeights(self.norm, matrix(shape.V, shape.D, lane))
        self.packed = cpu.pack_head(self.head, lane)
        self.target_N = torch.randint(0, shape.V, (self.num_rows,))

    def native(self, isa: str) -> Call:
        return lambda: cpu.linear_nll(self.x_TD, self.packed, self.target_N, isa=isa)

    def reference(self) -> Call:
        return lambda: reference_head.linear_nll(self.x_TD, self.head, self.target_N, lane=self.lane)

    def torch(self) -> Call:
        x = self.x_TD.to(DTYPE[self.lane])

        def call() -> object:
            logits = functional.linear(self.torch_norm(x), self.head.lm_head_VD)
            return -logits.float().log_softmax(-1).gather(1, self.target_N[:, None])

        return call

    def error(self, isa: str) -> float:
        rows, target = self.rows, self.target_N[self.rows]
        got = cpu.linear_nll(self.x_TD, self.packed, self.target_N, isa=isa).nll_N[rows]
        want = reference_head.linear_nll(self.x_TD[rows], self.head, target, lane=self.lane).nll_N
        return distance(got, want)


PROBLEMS: dict[str, type[Problem]] = {p.name: p for p in (AttnIn, Attention, AttnOut, Mlp, Experts, LinearNll)}
