"""Weights into the panels that the CPU's products take, once, from memory or straight from where they are read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from psyfast.errors import BackendError
from psyfast.ops import native
from psyfast.ops.cpu_attention import PANEL_COLUMNS
from psyfast.ops.native import ELEMENT, check, guarded
from psyfast.ops.records import DeferredMatrix, Lane, Matrix

BLOCK_COLUMNS = 8 * PANEL_COLUMNS
"""Columns of a deferred matrix that are read and packed at a time: a few megabytes, packed while in the cache."""
MAX_BLOCKS = 4
"""That are read and packed at once."""
ALIGNMENT = 64


def pack(
    name: str, weight: Matrix, lane: Lane, row_of_column: Tensor | None = None, num_threads: int | None = None
) -> Tensor:
    """Panels of 64 columns, int32 (csrc/pack.h): column c is the weight's row row_of_column[c], or zeros where it is −1.

    row_of_column: default: the rows in their order. num_threads: default: torch's. Raises BackendError for weights
    that are not fp32 or bf16 rows.
    """
    if weight.dtype not in ELEMENT:
        raise BackendError(f"{name} is {weight.dtype}, expected torch.float32 or torch.bfloat16; convert it")
    if isinstance(weight, Tensor):
        check(name, weight, weight.dtype, (None, None))
    num_rows, inner = weight.shape
    columns = torch.arange(num_rows) if row_of_column is None else row_of_column
    threads = torch.get_num_threads() if num_threads is None else num_threads
    panels = fresh_words(native.load().packed_words(len(columns), inner, lane.value))
    if isinstance(weight, Tensor):
        _pack_into(panels, weight, columns, lane, threads)
        return panels
    words_a_panel = native.load().packed_words(PANEL_COLUMNS, inner, lane.value)

    def read_and_pack(start: int) -> None:
        rows, place = _read_rows(weight, columns[start : start + BLOCK_COLUMNS])
        _pack_into(panels[start // PANEL_COLUMNS * words_a_panel :], rows, place, lane, 1)

    starts = range(0, len(columns), BLOCK_COLUMNS)
    if threads == 1:
        for start in starts:
            read_and_pack(start)
    else:  # a block each: reading one takes as long as packing it
        with ThreadPoolExecutor(min(threads, MAX_BLOCKS)) as pool:
            list(pool.map(read_and_pack, starts))
    return panels


def fresh_words(count: int) -> Tensor:
    """Uninitialised int32 words at a multiple of 64 bytes.

    numpy asks the system for huge pages and torch does not: the first touch costs a fifth of the time.
    """
    spare = ALIGNMENT // 4
    words = np.empty(count + spare, np.int32)
    first = -words.ctypes.data % ALIGNMENT // 4
    return torch.from_numpy(words[first : first + count])


def _read_rows(weight: DeferredMatrix, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that some columns want, each run of neighbours read at once, and each column's place among them."""
    wanted = columns[columns >= 0].unique()
    breaks = torch.nonzero(wanted.diff() != 1).flatten() + 1
    runs = wanted.tensor_split(breaks.tolist())
    parts = [weight.read(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
    if not parts:
        return torch.empty(1, weight.shape[1], dtype=weight.dtype), columns  # nothing of it is looked at
    place = torch.where(columns >= 0, torch.searchsorted(wanted, columns), -1)
    return (torch.cat(parts) if len(parts) > 1 else parts[0]), place


def _pack_into(panels: Tensor, weight: Tensor, row_of_column: Tensor, lane: Lane, num_threads: int) -> None:
    guarded(
        lambda: native.load().pack_columns(
            weights=weight.data_ptr(),
            source=ELEMENT[weight.dtype],
            num_rows=weight.shape[0],
            inner=weight.shape[1],
            row_of_column=row_of_column.data_ptr(),
            num_columns=len(row_of_column),
            lane=lane.value,
            packed=panels.data_ptr(),
            num_threads=num_threads,
        )
    )
