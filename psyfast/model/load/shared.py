"""A base's tensors for several adapters at once: each matrix of its layers is read and de-quantised once for all of them."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from psyfast.model.load.tensors import TensorFiles, whole

LAYERS_AT_ONCE = 2
"""Of streamed models: one reader may be a whole layer ahead of another."""
_LAYER = re.compile(r"model\.layers\.\d+\.")


@dataclass
class _Kept:
    """A matrix's values, once somebody has asked for them, and how many rows have been handed out."""

    lock: Lock = field(default_factory=Lock)
    values: Tensor | None = None
    rows_given: int = 0


class SharedFiles:
    """A base under the interface of its files, for so many readers in step, each in a thread of its own or all in one.

    A layer's matrix is kept from its first row asked for until every reader has had all of them; matrices of
    layers_at_once layers at most. Readers that are further apart get the same values and cost another reading.
    """

    def __init__(self, base: TensorFiles, num_readers: int, layers_at_once: int = LAYERS_AT_ONCE) -> None:
        self._base, self._num_readers = base, num_readers
        matrices = Counter(layer[0] for name, shape in base.shapes.items() if (layer := _layer_of(name, shape)))
        self._max_kept = layers_at_once * max(matrices.values(), default=0)
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes
        self.files: tuple[Path, ...] = base.files
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
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
        if _layer_of(name, self.shapes[name]) is None:
            self._base.read_into(name, out, first_row)
            return
        kept = self._kept_of(name)
        with kept.lock:
            if kept.values is None:
                kept.values = whole(self._base, name)
            values = kept.values
        out.copy_(values[first_row : first_row + len(out)])
        with self._lock:
            kept.rows_given += len(out)
            if kept.rows_given >= self._num_readers * self.shapes[name][0] and self._kept.get(name) is kept:
                del self._kept[name]

    def _kept_of(self, name: str) -> _Kept:
        with self._lock:
            if name not in self._kept:
                self._kept[name] = _Kept()
                if len(self._kept) > self._max_kept:
                    self._kept.popitem(last=False)
            return self._kept[name]

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows."""
        return self._base.gather(name, rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """The base's types."""
        return self._base.stored_as()


def kept_bytes(base: TensorFiles) -> int:
    """Memory of the base's matrices that are kept while adapters over it are streamed, at most."""
    by_layer: Counter[str] = Counter()
    for name, shape in base.shapes.items():
        if layer := _layer_of(name, shape):
            by_layer[layer[0]] += shape[0] * shape[1] * base.dtype(name).itemsize
    return sum(num_bytes for _, num_bytes in by_layer.most_common(LAYERS_AT_ONCE))


def _layer_of(name: str, shape: tuple[int, ...]) -> re.Match[str] | None:
    """The layer's part of a name; None where it is no matrix of a layer."""
    return _LAYER.match(name) if len(shape) == 2 else None
