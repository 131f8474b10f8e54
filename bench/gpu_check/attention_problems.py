"""`attention` as a problem: a planned forest, random queries, keys and values; the truth is dense and knows no tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench.gpu_check import roofline
from bench.gpu_check.comparing import Results, largest
from bench.gpu_check.problems import FP32_EPS
from bench.gpu_check.roofline import Work
from psyfast.ops.gpu.checks import HostTables
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS, AttentionTiles, DeviceKernels
from psyfast.ops.gpu.tiles import plan_tiles
from psyfast.plan.batch import Branch, Request, plan_batch
from psyfast.plan.flops import causal_pairs

SCORES_ALIVE = 1 << 26  # of the dense truth: 512 MiB in fp64


def segments(*lengths: int) -> list[Request]:
    """Sequences without branches that share nothing: their first ids differ."""
    return [Request(np.arange(n + 1) + 100_000 * (i + 1), np.array([n])) for i, n in enumerate(lengths)]


def caterpillar(trunk: int, every: int, branch_tokens: int, *, first_id: int = 0) -> Request:
    """A trunk with a branch of so many own tokens at every so many positions."""
    ids = np.arange(trunk + 1) + first_id
    tail = np.arange(branch_tokens + 1) + first_id + 50_000
    branches = tuple(Branch(at, tail, at, at + branch_tokens + 1) for at in range(every, trunk, every))
    return Request(ids, np.array([trunk]), branches)


@dataclass(frozen=True)
class Attention:
    """attention over the pages of a forest; tables on the host, as the plan made them."""

    tables: HostTables
    q_THE: Tensor
    k: Tensor
    v: Tensor
    positions_T: Tensor
    scale: float
    window: int | None = None
    soft_cap: float | None = None
    sinks_H: Tensor | None = None
    tiles: dict[tuple[int, int], AttentionTiles] = field(default_factory=dict)
    operator = "attention"

    @classmethod
    def random(
        cls,
        requests: Sequence[Request],
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        sinks: bool = False,
    ) -> Attention:
        """Scores of about unit size, so that a soft cap below 4 bends; slots that no row wrote are zero, as the engine's are."""
        batch = plan_batch(requests).batch
        pages = batch.pages
        tables = HostTables(batch.positions_T, pages.qo_indptr, pages.kv_indptr, pages.kv_indices, pages.num_pages)
        filled_PS = torch.zeros(pages.num_pages * PAGE_SLOTS, device=device)
        filled_PS[torch.from_numpy(np.concatenate([pages.slots_T, pages.copy_to])).to(device)] = 1.0
        filled = filled_PS.view(pages.num_pages, 1, PAGE_SLOTS, 1)
        k, v = torch.randn(2, pages.num_pages, num_kv_heads, PAGE_SLOTS, head_dim, device=device) * filled
        return cls(
            tables,
            torch.randn(len(batch.positions_T), num_heads, head_dim, device=device).to(dtype),
            k.to(dtype),
            v.to(dtype),
            torch.from_numpy(batch.positions_T).to(device),
            head_dim**-0.5,
            window,
            soft_cap,
            torch.randn(num_heads, device=device) if sinks else None,
        )

    @property
    def num_rows(self) -> int:
        return len(self.q_THE)

    @property
    def work(self) -> Work:
        T, H, E = self.q_THE.shape
        pairs = causal_pairs(self.tables.positions, self.window)
        return roofline.attention(T, pairs, self.tables.num_pages, H, self.k.shape[1], E, self.k.itemsize)

    def tiles_for(self, kernels: DeviceKernels) -> AttentionTiles:
        """Planned at the first call, as the engine does once a batch."""
        shape = kernels.tile_shape(self.q_THE.shape[2], self.q_THE.dtype)
        if shape not in self.tiles:
            self.tiles[shape] = plan_tiles(self.tables, *shape, self.window).to(self.q_THE.device)
        return self.tiles[shape]

    def tiled_flop(self, kernels: DeviceKernels) -> float:
        """What a backend multiplies with its tiles: whole blocks of keys by whole tiles of rows."""
        tiles = self.tiles_for(kernels)
        blocks = int((tiles.bounds_I4[:, 3] - tiles.bounds_I4[:, 0]).sum())
        _, H, E = self.q_THE.shape
        return 4.0 * E * H * blocks * tiles.query_rows * tiles.key_pages * PAGE_SLOTS

    def _call(self, kernels: DeviceKernels, tiles: AttentionTiles) -> Tensor:
        return kernels.attention(
            self.q_THE,
            (self.k, self.v),
            self.positions_T,
            tiles,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            sinks_H=self.sinks_H,
        )

    def run(self, kernels: DeviceKernels) -> Results:
        return {"o": self._call(kernels, self.tiles_for(kernels))}

    def once(self, kernels: DeviceKernels) -> Callable[[], object]:
        tiles = self.tiles_for(kernels)
        return lambda: self._call(kernels, tiles)

    def truth(self) -> Results:
        return {"o": self._dense(torch.float64)}

    def in_torch(self) -> Results:
        return {"o": self._dense(self.q_THE.dtype)}

    def floors(self, truth: Results) -> dict[str, float]:
        """bf16: weights and result are rounded once each. fp32: scores are sums, and their errors are the weights'."""
        scores = self.scale * largest(self.q_THE.double().norm(dim=-1)) * largest(self.k.double().norm(dim=-1))
        units = torch.finfo(self.q_THE.dtype).eps if self.q_THE.dtype != torch.float32 else 0.0
        return {"o": (units + FP32_EPS * (8 + 2 * scores)) * largest(truth["o"])}

    def _dense(self, dtype: torch.dtype) -> Tensor:
        """Every segment with the keys of its path, gathered: o_T(HE)."""
        T, H, E = self.q_THE.shape
        out = torch.empty(T, H, E, dtype=dtype, device=self.q_THE.device)
        for rows, path in self._paths():
            k_HCE, v_HCE = (
                pages[path].transpose(0, 1).flatten(1, 2).to(dtype).repeat_interleave(H // pages.shape[1], 0)
                for pages in (self.k, self.v)
            )
            keys_C = torch.arange(k_HCE.shape[1], device=out.device)
            size = max(1, SCORES_ALIVE // (H * len(keys_C)))
            for start in range(rows.start, rows.stop, size):
                some = slice(start, min(start + size, rows.stop))
                mask_RC = keys_C <= self.positions_T[some, None]
                if self.window is not None:
                    mask_RC &= keys_C > self.positions_T[some, None] - self.window
                q_HRE = self.q_THE[some].transpose(0, 1).to(dtype)
                out[some] = self._attend(q_HRE, k_HCE, v_HCE, mask_RC).transpose(0, 1)
        return out.flatten(1)

    def _attend(self, q_HRE: Tensor, k_HCE: Tensor, v_HCE: Tensor, mask_RC: Tensor) -> Tensor:
        if self.soft_cap is None and self.sinks_H is None:
            return functional.scaled_dot_product_attention(
                q_HRE[None], k_HCE[None], v_HCE[None], attn_mask=mask_RC, scale=self.scale
            )[0]
        # torch has no fused form of these: softmax in fp32 (fp64), operands of the products in the kernel's type.
        wide = torch.promote_types(q_HRE.dtype, torch.float32)
        scores_HRC = (q_HRE @ k_HCE.transpose(1, 2)).to(wide) * self.scale
        if self.soft_cap is not None:
            scores_HRC = self.soft_cap * torch.tanh(scores_HRC / self.soft_cap)
        scores_HRC = scores_HRC.masked_fill(~mask_RC, -torch.inf)
        if self.sinks_H is not None:
            sinks = self.sinks_H.to(wide)[:, None, None].expand(-1, scores_HRC.shape[1], 1)
            scores_HRC = torch.cat([scores_HRC, sinks], -1)
        return scores_HRC.softmax(-1)[..., : mask_RC.shape[1]].to(q_HRE.dtype) @ v_HCE

    def _paths(self) -> Iterator[tuple[slice, Tensor]]:
        """A segment's rows and the pages of its path."""
        tables = self.tables
        for (start, stop), (first, last) in zip(pairwise(tables.qo_indptr), pairwise(tables.kv_indptr), strict=True):
            if stop > start:
                yield slice(start, stop), torch.from_numpy(tables.kv_indices[first:last]).to(self.q_THE.device)

    def only(self, rows: Tensor) -> Attention:
        """Some rows alone, ascending, over the same pages."""
        host = rows.cpu().numpy()
        tables = replace(
            self.tables,
            positions=self.tables.positions[host],
            qo_indptr=np.searchsorted(host, self.tables.qo_indptr),
        )
        return replace(
            self,
            tables=tables,
            q_THE=self.q_THE[rows].contiguous(),
            positions_T=self.positions_T[rows].contiguous(),
            tiles={},
        )

    def rows_of(self, results: Results, rows: Tensor) -> Results:
        return {"o": results["o"][rows]}
