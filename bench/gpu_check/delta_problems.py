"""`short_convolution` and `delta_rule` as problems: a forest's rows, random channels, decays of all speeds.

The truth goes from chunk to chunk, as the kernels do, in fp64; that chunks are the plain recurrence is tested elsewhere
(tests/ops/test_delta_rule.py). A row's result hangs on all rows before it, so there are no rows to be run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gpu_check import roofline
from bench.gpu_check.comparing import Results, largest
from bench.gpu_check.oracle import EXACT, IN_TORCH
from bench.gpu_check.problems import FP32_EPS
from bench.gpu_check.roofline import Work
from psyfast.engine import allocate_pages
from psyfast.model.rope import RopeTraits
from psyfast.model.traits import Traits
from psyfast.ops.gpu.delta_plan import delta_plan_of
from psyfast.ops.gpu.kernel_set import DeltaPlan, DeltaSizes, DeviceKernels
from psyfast.ops.gpu.products import TEMPORARY_BYTES
from psyfast.ops.paths import tap_rows
from psyfast.ops.records import Pages
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch


def pages_of(requests: Sequence[Request], device: torch.device) -> Pages:
    """A forest's tables on a device, over pages of one narrow head."""
    batch = plan_batch(requests).batch
    traits = Traits("none", 1, 8, 8, 1, 1, 8, 8, 1 << 20, 1e-6, RopeTraits())
    return allocate_pages(batch.pages, batch.positions_T, traits, resolve("reference", str(device)))


@dataclass(frozen=True)
class ShortConvolution:
    """short_convolution: channels of all rows."""

    qkv_TC: Tensor
    path_WT: Tensor
    taps_WC: Tensor
    sizes: DeltaSizes
    operator = "short_convolution"
    dtype = torch.float32

    @classmethod
    def random(
        cls, requests: Sequence[Request], sizes: DeltaSizes, num_taps: int, device: torch.device
    ) -> ShortConvolution:
        """A filter that keeps the size of what goes through it."""
        path_WT = tap_rows(pages_of(requests, device), num_taps)
        C = 2 * sizes.num_key_heads * sizes.key_dim + sizes.num_value_heads * sizes.value_dim
        taps_WC = torch.randn(num_taps, C, device=device) / num_taps**0.5
        return cls(torch.randn(path_WT.shape[1], C, device=device), path_WT, taps_WC, sizes)

    @property
    def work(self) -> Work:
        return roofline.short_convolution(*self.qkv_TC.shape, len(self.taps_WC))

    def run(self, kernels: DeviceKernels) -> Results:
        return {"qkv": kernels.short_convolution(self.qkv_TC, self.path_WT, self.taps_WC, self.sizes)}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        return lambda: self.run(kernels)

    def truth(self) -> Results:
        return self.run(EXACT)

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        """A few units in the last place: of a sum, of an exponential and of a norm."""
        return {"qkv": 6 * FP32_EPS * max(1.0, largest(truth["qkv"]))}


@dataclass(frozen=True)
class DeltaRule:
    """delta_rule: outputs of all rows."""

    qkv_TC: Tensor
    log_decay_TH: Tensor
    write_TH: Tensor
    plan: DeltaPlan
    sizes: DeltaSizes
    operator = "delta_rule"
    dtype = torch.float32

    @classmethod
    def random(cls, requests: Sequence[Request], sizes: DeltaSizes, device: torch.device) -> DeltaRule:
        """Q and k of unit length; half-lives from a fraction of a token to hundreds."""
        convolved = ShortConvolution.random(requests, sizes, 1, device)
        T, H = len(convolved.qkv_TC), sizes.num_value_heads
        return cls(
            convolved.run(IN_TORCH)["qkv"],
            -torch.exp2(torch.empty(T, H, device=device).uniform_(-9, 3)),
            torch.rand(T, H, device=device),
            delta_plan_of(pages_of(requests, device), sizes.chunks_within(TEMPORARY_BYTES)),
            sizes,
        )

    @property
    def work(self) -> Work:
        return roofline.delta_rule(
            *self.qkv_TC.shape, self.sizes.num_value_heads, self.sizes.key_dim, self.sizes.value_dim
        )

    def run(self, kernels: DeviceKernels) -> Results:
        return {"o": kernels.delta_rule(self.qkv_TC, self.log_decay_TH, self.write_TH, self.plan, self.sizes)}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        return lambda: self.run(kernels)

    def truth(self) -> Results:
        return self.run(EXACT)

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        """A few units in the last place of sums of sums; of 1e-2, where outputs are small by chance."""
        return {"o": 12 * FP32_EPS * max(1e-2, largest(truth["o"]))}
