"""What must hold before a kernel may run, checked once on the host: a kernel then touches no memory that is not its own.

Letters as in kernel_set.py; S segments here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops.gpu.kernel_set import PAGE_SLOTS, DeltaSizes
from psyfast.ops.records import Pages

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class HostTables:
    """A batch's tables as attention reads them, on the host: row r of segment s stands at positions[r] of its path,
    the pages kv_indices[kv_indptr[s] : kv_indptr[s + 1]], and s has the rows [qo_indptr[s], qo_indptr[s + 1]).
    """

    positions: Int64Array
    qo_indptr: Int64Array
    kv_indptr: Int64Array
    kv_indices: Int64Array
    num_pages: int

    @classmethod
    def of(cls, pages: Pages) -> HostTables:
        """Those of a batch's pages (waits for the device)."""
        return cls(
            positions=pages.positions_T.cpu().numpy(),
            qo_indptr=pages.qo_indptr.cpu().numpy(),
            kv_indptr=pages.kv_indptr.cpu().numpy(),
            kv_indices=pages.kv_indices.cpu().numpy(),
            num_pages=pages.k.shape[0],
        )


def check_tensor(
    name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype, shape: tuple[int | None, ...]
) -> None:
    """BackendError unless a tensor is on this device, contiguous, and of this type and shape (None: any size)."""
    if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
        raise BackendError(f"{name} is on {tensor.device}, expected {device}; move it with .to('{device}')")
    if tensor.dtype != dtype:
        raise BackendError(f"{name} is {tensor.dtype}, expected {dtype}; convert it with .to({dtype})")
    if len(shape) != tensor.dim() or any(w not in (None, g) for w, g in zip(shape, tensor.shape, strict=True)):
        wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
        raise BackendError(f"{name} has shape {list(tensor.shape)}, expected {wanted}; check what the caller passed")
    if not tensor.is_contiguous():
        raise BackendError(f"{name} has strides {tensor.stride()}, expected contiguous rows; call .contiguous()")


def check_delta_limits(name: str, sizes: DeltaSizes, num_taps: int, most: int, most_taps: int) -> None:
    """BackendError for heads or filters that are beyond what a backend's delta rule takes."""
    for size in (sizes.key_dim, sizes.value_dim):
        if not 1 <= size <= most:
            raise BackendError(
                f"the {name} backend's delta rule takes heads of 1 to {most}, got {size}; use --backend reference"
            )
    if not 1 <= num_taps <= most_taps:
        raise BackendError(f"the filter has {num_taps} taps, expected 1 to {most_taps}; use --backend reference")


def check_within(name: str, ids: Int64Array, stop: int, start: int = 0) -> None:
    """BackendError unless every element is in [start, stop)."""
    if ids.size and not (start <= ids.min() and ids.max() < stop):
        wrong = ids[(ids < start) | (ids >= stop)].ravel()[0]
        raise BackendError(f"{name} holds {wrong}, expected numbers in [{start}, {stop}); check the batch's plan")


def check_tables(tables: HostTables) -> None:
    """BackendError unless rows and pages are where the tables' lengths say, and every row within its own path."""
    num_rows, num_segments = len(tables.positions), len(tables.kv_indptr) - 1
    if len(tables.qo_indptr) != num_segments + 1:
        raise BackendError(
            f"qo_indptr has {len(tables.qo_indptr)} elements, expected {num_segments + 1}, as many as kv_indptr; check "
            "the batch's plan"
        )
    _check_indptr("qo_indptr", tables.qo_indptr, num_rows)
    _check_indptr("kv_indptr", tables.kv_indptr, len(tables.kv_indices))
    check_within("kv_indices", tables.kv_indices, tables.num_pages)
    lengths = np.diff(tables.qo_indptr)
    path_slots = np.repeat(np.diff(tables.kv_indptr) * PAGE_SLOTS, lengths)
    outside = (tables.positions < 0) | (tables.positions >= path_slots)
    if outside.any():
        row = int(outside.argmax())
        raise BackendError(
            f"row {row} stands at position {tables.positions[row]}, expected one in its path's [0, {path_slots[row]}); "
            "check the batch's plan"
        )
    ascends = np.diff(tables.positions) > 0
    first_rows = tables.qo_indptr[:-1][lengths > 0]
    ascends[first_rows[1:] - 1] = True
    if not ascends.all():
        row = int(ascends.argmin()) + 1
        raise BackendError(
            f"row {row} stands at position {tables.positions[row]}, expected one after {tables.positions[row - 1]}, the "
            "row before it in its segment; check the batch's plan"
        )


def _check_indptr(name: str, indptr: Int64Array, last: int) -> None:
    if len(indptr) == 0 or indptr[0] != 0 or indptr[-1] != last or (np.diff(indptr) < 0).any():
        ends = "none" if len(indptr) == 0 else f"{indptr[0]} to {indptr[-1]}"
        raise BackendError(f"{name} goes from {ends}, expected ascending from 0 to {last}; check the batch's plan")


def check_writes(pages: Pages) -> None:
    """BackendError unless every slot that is written or copied lies in the pages, and every position has its angle.

    Waits for the device.
    """
    num_pages = pages.k.shape[0]
    slots, positions = pages.slots_T.cpu().numpy(), pages.positions_T.cpu().numpy()
    if len(slots) != len(positions):
        raise BackendError(f"slots_T has {len(slots)} elements, expected {len(positions)}, one a row; check the plan")
    check_within("slots_T", slots, num_pages * PAGE_SLOTS)
    check_within("positions_T", positions, pages.rope_tables.num_positions)
    runs = pages.copy_runs_R4.cpu().numpy()
    check_within("copy_runs_R4's pages", runs[:, :2], num_pages)
    check_within("copy_runs_R4's slots", runs[:, 2:], PAGE_SLOTS + 1)
    if (runs[:, 2] > runs[:, 3]).any():
        wrong = runs[runs[:, 2] > runs[:, 3]][0].tolist()
        raise BackendError(f"copy_runs_R4 holds {wrong}, expected a first slot before the last; check the batch's plan")
