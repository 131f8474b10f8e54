"""A base's tensors for several adapters at once: what more than one of them merges with is read and de-quantised once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from psyfast.model.load.tensors import TensorFiles, whole


class SharedFiles:
    """A base under the interface of its files, for readers that take a layer one after the other.

    The matrices read_again are kept from their first rows asked for until `forget`, all others read as they are asked
    for. Safe for threads that read rows of their own, as those do that pack a layer.
    """

    def __init__(self, base: TensorFiles, read_again: Collection[str]) -> None:
        self._base, self._read_again = base, read_again
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        self.files: tuple[Path, ...] = base.files
        self._kept: dict[str, _Kept] = {}
        self._lock = Lock()

    def stored_name(self, name: str) -> str:
        """The base's."""
        return self._base.stored_name(name)

    def dtype(self, name: str) -> torch.dtype:
        """The base's."""
        return self._base.dtype(name)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self, name)

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Rows from first_row on."""
        if name not in self._read_again:
            self._base.read_into(name, out, first_row)
            return
        with self._lock:
            if name not in self._kept:
                self._kept[name] = _Kept(self.shapes[name], self._base.dtype(name))
            kept = self._kept[name]
        rows = slice(first_row, first_row + len(out))
        if not kept.is_there[rows].all():
            self._base.read_into(name, kept.values[rows], first_row)
            kept.is_there[rows] = True
        out.copy_(kept.values[rows])

    def forget(self, prefix: str) -> None:
        """Let go of the matrices whose names begin so: all have read them."""
        with self._lock:
            for name in [name for name in self._kept if name.startswith(prefix)]:
                del self._kept[name]

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows."""
        return self._base.gather(name, rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """The base's types."""
        return self._base.stored_as()


class _Kept:
    """A matrix's values, and which of its rows have been read."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        # numpy asks the system for huge pages and torch does not: its memory is sooner there.
        memory = np.empty(prod(shape) * dtype.itemsize, np.uint8)
        self.values = torch.from_numpy(memory).view(dtype).view(shape)
        self.is_there = np.zeros(shape[0], bool)


def kept_bytes(
    read_again: Collection[str], shapes: Mapping[str, tuple[int, ...]], value_bytes: Callable[[str], int]
) -> int:
    """Memory of what is kept while a layer is prepared, at most. value_bytes: of a tensor's values, as they are read."""
    by_layer: Counter[str] = Counter()
    for name in read_again:
        rows, columns = shapes[name]
        by_layer[name.split(".")[2]] += rows * columns * value_bytes(name)
    return max(by_layer.values(), default=0)
