"""What numerics, determinism, sanitizer and throughput have in common: one kernel on random inputs, and what is true of it.

The truth is the kernel's contract in plain torch and fp64 (tests/ops/plain_kernels.py); torch's own error is that of the
same in fp32, rounded to the types that the kernel returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from bench.gpu_check import roofline
from bench.gpu_check.comparing import Results, largest
from bench.gpu_check.oracle import EXACT, IN_TORCH
from bench.gpu_check.roofline import Work
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS, DeviceKernels, DeviceNorm, HeadsShape, HeadsTraits

FP32_EPS = torch.finfo(torch.float32).eps


class Problem(Protocol):
    """One kernel's call. `operator` is the kernel's name, `work` what the roofline counts."""

    operator: str

    @property
    def work(self) -> Work: ...

    def run(self, kernels: DeviceKernels) -> Results:
        """All outputs; what a kernel changes in place is a copy."""
        ...

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        """A call to time: it allocates nothing but what the kernel does itself."""
        ...

    def truth(self) -> Results:
        """In fp64."""
        ...

    def in_torch(self) -> Results:
        """By torch, in the kernel's types."""
        ...

    def floors(self, truth: Results) -> dict[str, float]:
        """What the error of an output may be in any case; outputs that are missing must be exact."""
        ...


class RowsProblem(Problem, Protocol):
    """A problem whose rows do not depend on one another, so that some can be run alone."""

    num_rows: int

    def only(self, rows: Tensor) -> RowsProblem:
        """Some rows alone."""
        ...

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        """What only(rows) must give, from the results of all rows."""
        ...


def rounding(truth: Tensor, dtype: torch.dtype) -> float:
    """Floor of a result that is rounded to dtype once, after fp32 arithmetic of a few units in the last place."""
    return (0.5 * torch.finfo(dtype).eps + 8 * FP32_EPS) * largest(truth)


def random_norm(width: int, device: torch.device, *, unit_offset: bool = False) -> DeviceNorm:
    """A norm whose weights lie around 1."""
    weight = torch.rand(width, device=device) + 0.5
    return DeviceNorm(weight - 1.0 if unit_offset else weight, 1e-6, unit_offset)


@dataclass(frozen=True)
class NormRows:
    """norm_rows: x_TD, normalised and rounded."""

    x_TD: Tensor
    norm: DeviceNorm | None
    dtype: torch.dtype
    operator = "norm_rows"

    @classmethod
    def random(
        cls, rows: int, hidden: int, dtype: torch.dtype, device: torch.device, *, kind: str = "plain"
    ) -> NormRows:
        """kind: plain, offset (weights plus one) or none. Rows are of all sizes, as a residual stream's are."""
        sizes = torch.exp2(torch.randint(-6, 7, (rows, 1), device=device).float())
        norm = None if kind == "none" else random_norm(hidden, device, unit_offset=kind == "offset")
        return cls(torch.randn(rows, hidden, device=device) * sizes, norm, dtype)

    @property
    def num_rows(self) -> int:
        return len(self.x_TD)

    @property
    def work(self) -> Work:
        return roofline.norm_rows(*self.x_TD.shape, self.dtype.itemsize)

    def run(self, kernels: DeviceKernels) -> Results:
        return {"y": kernels.norm_rows(self.x_TD, self.norm, self.dtype)}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        return lambda: kernels.norm_rows(self.x_TD, self.norm, self.dtype)

    def truth(self) -> Results:
        return self.run(EXACT)

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        return {"y": rounding(truth["y"], self.dtype)}

    def only(self, rows: Tensor) -> NormRows:
        return replace(self, x_TD=self.x_TD[rows].contiguous())

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        return {"y": results["y"][rows]}


@dataclass(frozen=True)
class AddRows:
    """add_rows: x += norm(y + bias), in place."""

    x_TD: Tensor
    y_TD: Tensor
    bias_D: Tensor | None
    norm: DeviceNorm | None
    operator = "add_rows"

    @classmethod
    def random(cls, rows: int, hidden: int, device: torch.device, *, bias: bool = False, norm: bool = False) -> AddRows:
        x, y = torch.randn(2, rows, hidden, device=device)
        bias_D = torch.randn(hidden, device=device) if bias else None
        return cls(x, y, bias_D, random_norm(hidden, device, unit_offset=True) if norm else None)

    @property
    def num_rows(self) -> int:
        return len(self.x_TD)

    @property
    def work(self) -> Work:
        return roofline.add_rows(*self.x_TD.shape)

    def run(self, kernels: DeviceKernels) -> Results:
        x = self.x_TD.clone()
        kernels.add_rows(x, self.y_TD, self.bias_D, self.norm)
        return {"x": x}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        x = self.x_TD.clone()
        return lambda: kernels.add_rows(x, self.y_TD, self.bias_D, self.norm)

    def truth(self) -> Results:
        return replace(self, x_TD=self.x_TD.double()).run(EXACT)

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        return {"x": rounding(truth["x"], torch.float32)}

    def only(self, rows: Tensor) -> AddRows:
        return replace(self, x_TD=self.x_TD[rows].contiguous(), y_TD=self.y_TD[rows].contiguous())

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        return {"x": results["x"][rows]}


@dataclass(frozen=True)
class Gated:
    """gated: act(gate) · up."""

    gate_up_TG: Tensor
    activation: str
    dtype: torch.dtype
    operator = "gated"

    @classmethod
    def random(cls, rows: int, width: int, activation: str, dtype: torch.dtype, device: torch.device) -> Gated:
        """Gates of all sizes: far out on both sides, near 0, and 0."""
        gate_up = torch.randn(rows, 2 * width, device=device)
        gate_up[:, :width] *= torch.exp2(torch.randint(-8, 6, (rows, width), device=device).float())
        gate_up[:, :1] = 0.0
        return cls(gate_up, activation, dtype)

    @property
    def num_rows(self) -> int:
        return len(self.gate_up_TG)

    @property
    def work(self) -> Work:
        return roofline.gated(self.num_rows, self.gate_up_TG.shape[1] // 2, self.dtype.itemsize)

    def run(self, kernels: DeviceKernels) -> Results:
        return {"h": kernels.gated(self.gate_up_TG, self.activation, self.dtype)}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        return lambda: kernels.gated(self.gate_up_TG, self.activation, self.dtype)

    def truth(self) -> Results:
        return self.run(EXACT)

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        return {"h": rounding(truth["h"], self.dtype)}

    def only(self, rows: Tensor) -> Gated:
        return replace(self, gate_up_TG=self.gate_up_TG[rows].contiguous())

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        return {"h": results["h"][rows]}


@dataclass(frozen=True)
class Heads:
    """heads: bias, norms of q and k, rotary embedding, write of k and v into pages (stored as `stored`)."""

    qkv_TC: Tensor
    shape: HeadsShape
    traits: HeadsTraits
    cos_sin: tuple[Tensor, Tensor] | None
    positions_T: Tensor
    slots_T: Tensor
    num_pages: int
    dtype: torch.dtype
    stored: torch.dtype
    operator = "heads"

    @classmethod
    def random(
        cls,
        rows: int,
        shape: HeadsShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        bias: bool = False,
        norm: str = "none",
        rotated_pairs: int | None = None,
    ) -> Heads:
        """norm: none, head or together. rotated_pairs: None for half the head, 0 for no rotary embedding."""
        H, K, E = shape.num_heads, shape.num_kv_heads, shape.head_dim
        pairs = E // 2 if rotated_pairs is None else rotated_pairs
        widths = {"none": (0, 0), "head": (E, E), "together": (H * E, K * E)}[norm]
        q_norm, k_norm = (random_norm(width, device) if width else None for width in widths)
        num_pages = -(-rows // PAGE_SLOTS) + 1
        columns, num_positions = (H + 2 * K) * E, 2 * rows + 3
        angles = torch.rand(num_positions, max(pairs, 1), device=device) * (2 * math.pi)
        bias_C = torch.randn(columns, device=device) if bias else None
        return cls(
            torch.randn(rows, columns, device=device),
            shape,
            HeadsTraits(bias_C, q_norm, k_norm, norm == "together"),
            (angles.cos(), angles.sin()) if pairs else None,
            torch.randint(0, num_positions, (rows,), device=device),
            torch.randperm(num_pages * PAGE_SLOTS, device=device)[:rows],
            num_pages,
            dtype,
            dtype,
        )

    @property
    def num_rows(self) -> int:
        return len(self.qkv_TC)

    @property
    def work(self) -> Work:
        s, pairs = self.shape, 0 if self.cos_sin is None else self.cos_sin[0].shape[1]
        return roofline.heads(self.num_rows, s.num_heads, s.num_kv_heads, s.head_dim, pairs, self.dtype.itemsize)

    def _pages(self) -> tuple[Tensor, Tensor]:
        """Pages of ones: what is not a row's slot must stay as it is."""
        of_page = (self.shape.num_kv_heads, PAGE_SLOTS, self.shape.head_dim)
        k = torch.ones(self.num_pages, *of_page, dtype=self.stored, device=self.qkv_TC.device)
        return k, k.clone()

    def _call(self, kernels: DeviceKernels, pages: tuple[Tensor, Tensor]) -> Tensor:
        written = (self.slots_T, pages) if self.shape.num_kv_heads else (None, None)
        return kernels.heads(self.qkv_TC, self.shape, self.traits, self.cos_sin, self.positions_T, *written, self.dtype)

    def run(self, kernels: DeviceKernels) -> Results:
        k, v = self._pages()
        return {"q": self._call(kernels, (k, v)), "k": k, "v": v}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        pages = self._pages()
        return lambda: self._call(kernels, pages)

    def truth(self) -> Results:
        return replace(self, stored=torch.float64).run(EXACT)

    def in_torch(self) -> Results:
        return self.run(IN_TORCH)

    def floors(self, truth: Results) -> dict[str, float]:
        return {name: rounding(values, self.dtype) for name, values in truth.items()}

    def only(self, rows: Tensor) -> Heads:
        of_rows = {name: getattr(self, name)[rows].contiguous() for name in ("qkv_TC", "positions_T", "slots_T")}
        return replace(self, **of_rows)

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        """Q of the rows, and pages where nothing but the rows was written."""
        slots = self.slots_T[rows]
        pages = dict(zip(("k", "v"), self._pages(), strict=True))
        for name, page in pages.items() if self.shape.num_kv_heads else ():
            place = (slots // PAGE_SLOTS, slice(None), slots % PAGE_SLOTS)
            page[place] = results[name][place]
        return {"q": results["q"][rows], **pages}


@dataclass(frozen=True)
class CopySlots:
    """copy_slots: runs of slots from page to page, K and V; the result must be exact."""

    k: Tensor
    v: Tensor
    runs_R4: Tensor
    operator = "copy_slots"

    @classmethod
    def random(
        cls, num_runs: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> CopySlots:
        """Each run from a page of the first half into a page of its own of the second half."""
        half = max(num_runs, 1)
        k, v = torch.randn(2, 2 * half, num_kv_heads, PAGE_SLOTS, head_dim, device=device).to(dtype)
        source = torch.randint(0, half, (num_runs,), device=device)
        target = torch.randperm(half, device=device)[:num_runs] + half
        start = torch.randint(0, PAGE_SLOTS - 1, (num_runs,), device=device)
        length = (torch.rand(num_runs, device=device) * (PAGE_SLOTS - 1 - start)).long() + 1
        return cls(k, v, torch.stack([source, target, start, start + length], 1).contiguous())

    @property
    def work(self) -> Work:
        slots = int((self.runs_R4[:, 3] - self.runs_R4[:, 2]).sum())
        return roofline.copy_slots(slots, self.k.shape[1], self.k.shape[3], self.k.dtype.itemsize)

    def run(self, kernels: DeviceKernels) -> Results:
        k, v = self.k.clone(), self.v.clone()
        kernels.copy_slots((k, v), self.runs_R4)
        return {"k": k, "v": v}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        k, v = self.k.clone(), self.v.clone()
        return lambda: kernels.copy_slots((k, v), self.runs_R4)

    def truth(self) -> Results:
        return self.run(EXACT)

    def in_torch(self) -> Results:
        return self.truth()

    def floors(self, truth: Results) -> dict[str, float]:
        return {}
