"""`linear_nll` as a problem: normalised rows and an LM head, what a backend makes of them, and what is true in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.gpu_check import roofline
from bench.gpu_check.comparing import Results, largest
from bench.gpu_check.oracle import EXACT, IN_TORCH
from bench.gpu_check.problems import FP32_EPS
from bench.gpu_check.roofline import Work
from psyfast.ops.gpu.kernel_set import DeviceKernels, ScoreTensors

VALUES = ("nll", "entropy", "option_nll")


@dataclass(frozen=True)
class Head:
    """linear_nll of rows y_ND under a head; exact: inputs whose sums are exact in any order, so that ids must be equal."""

    y_ND: Tensor
    lm_head_VD: Tensor
    target_N: Tensor
    option_ids_NK: Tensor
    scale: float = 1.0
    soft_cap: float | None = None
    exact: bool = False
    operator = "linear_nll"

    @classmethod
    def random(
        cls,
        rows: int,
        vocab: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        num_options: int = 0,
        scale: float = 1.0,
        soft_cap: float | None = None,
    ) -> Head:
        """Logits of about unit size; a quarter of the options is none."""
        options = torch.randint(0, vocab, (rows, num_options), device=device)
        none = torch.rand(rows, num_options, device=device) < 0.25
        return cls(
            torch.randn(rows, hidden, device=device).to(dtype),
            (torch.randn(vocab, hidden, device=device) / math.sqrt(hidden)).to(dtype),
            torch.randint(0, vocab, (rows,), device=device),
            options.masked_fill(none, -1),
            scale,
            soft_cap,
        )

    @classmethod
    def of_integers(cls, rows: int, vocab: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Head:
        """Small integers: many ties, and every sum is exact, so rank and arg max must agree to the last of them."""
        made = cls.random(rows, vocab, hidden, dtype, device, num_options=3)
        return replace(
            made,
            y_ND=(torch.randint(0, 2, (rows, hidden), device=device) * 2 - 1).to(dtype),
            lm_head_VD=torch.randint(-2, 3, (vocab, hidden), device=device).to(dtype),
            scale=0.125,
            exact=True,
        )

    @classmethod
    def with_minus_infinity(cls, rows: int, vocab: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Head:
        """A head that rules the first half of its tokens out by −inf."""
        made = cls.random(rows, vocab, hidden, dtype, device, num_options=2)
        y, head = made.y_ND.clone(), made.lm_head_VD.clone()
        y[:, 0] = y[:, 0].abs() + 0.125
        head[: vocab // 2] = 0.0
        head[: vocab // 2, 0] = -math.inf
        possible = made.option_ids_NK.clamp_min(vocab // 2).masked_fill(made.option_ids_NK < 0, -1)
        return replace(
            made, y_ND=y, lm_head_VD=head, target_N=made.target_N.clamp_min(vocab // 2), option_ids_NK=possible
        )

    @classmethod
    def with_bad_rows(cls, rows: int, vocab: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Head:
        """Some rows hold NaN or an infinity: their results are NaN and −1, and the others' are not touched."""
        made = cls.random(rows, vocab, hidden, dtype, device, num_options=2)
        y = made.y_ND.clone()
        for row, value in ((0, math.nan), (rows // 2, math.inf), (rows - 1, math.nan)):
            y[row, row % hidden] = value
        return replace(made, y_ND=y)

    @property
    def num_rows(self) -> int:
        return len(self.y_ND)

    @property
    def work(self) -> Work:
        (rows, hidden), vocab = self.y_ND.shape, self.lm_head_VD.shape[0]
        return roofline.linear_nll(rows, hidden, vocab, self.option_ids_NK.shape[1], self.y_ND.itemsize)

    def run(self, kernels: DeviceKernels) -> Results:
        scores = self._call(kernels)
        return {
            "nll": scores.nll_N,
            "entropy": scores.entropy_N,
            "option_nll": scores.option_nll_NK,
            "argmax": scores.argmax_N,
            "rank": scores.rank_N,
        }

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        return lambda: self._call(kernels)

    def _call(self, kernels: DeviceKernels) -> ScoreTensors:
        return kernels.linear_nll(
            self.y_ND,
            self.lm_head_VD,
            self.target_N,
            self.option_ids_NK,
            scale=self.scale,
            soft_cap=self.soft_cap,
        )

    def logits(self, dtype: torch.dtype) -> Tensor:
        """[N, V] in dtype, from operands as they are."""
        logits_NV = self.y_ND.to(dtype) @ self.lm_head_VD.to(dtype).T * self.scale
        return logits_NV if self.soft_cap is None else self.soft_cap * torch.tanh(logits_NV / self.soft_cap)

    def truth(self) -> Results:
        """Without arg max and rank where a sum's order may decide them (`misplaced` judges those)."""
        scored = self.run(EXACT)
        return scored if self.exact else {name: scored[name] for name in VALUES}

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        """A few units in the last place of what is rounded: the result, and the terms whose sum a logit is."""
        y, head = (operand.float().abs().nan_to_num(0, 0, 0) for operand in (self.y_ND, self.lm_head_VD))
        terms = y @ head.T
        summed = largest(terms) * abs(self.scale)
        return {name: 4 * FP32_EPS * max(4.0, summed, largest(truth[name])) for name in VALUES}

    def misplaced(self, got: Results, tolerance: float) -> int:
        """Rows whose arg max or rank cannot be that of logits within the tolerance of the true ones."""
        logits_NV = self.logits(torch.float64)
        bad_N = ~torch.logsumexp(logits_NV, -1).isfinite()
        target_N1 = logits_NV.gather(1, self.target_N[:, None])
        at_least = (logits_NV > target_N1 + tolerance).sum(-1)
        at_most = (logits_NV >= target_N1 - tolerance).sum(-1) - 1
        top_N = logits_NV.gather(1, got["argmax"].clamp_min(0)[:, None])[:, 0]
        good = (got["rank"] >= at_least) & (got["rank"] <= at_most)
        good &= (top_N >= logits_NV.amax(-1) - tolerance) & (got["argmax"] >= 0)
        none = (got["rank"] == -1) & (got["argmax"] == -1)
        return int((~torch.where(bad_N, none, good)).sum())

    def only(self, rows: Tensor) -> Head:
        return replace(
            self,
            y_ND=self.y_ND[rows].contiguous(),
            target_N=self.target_N[rows].contiguous(),
            option_ids_NK=self.option_ids_NK[rows].contiguous(),
        )

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        return {name: values[rows] for name, values in results.items()}
