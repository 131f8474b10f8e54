"""A matrix whose values are computed from stored codes: read by rows like any other, de-quantised on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.stored import PIECE_VALUES, ValueFile, require_finite


@dataclass(frozen=True)
class RawTensor:
    """Where a tensor's bytes lie, whatever they mean. kind: as the file calls the type (`U8`, `I32`, `F8_E4M3`)."""

    name: str
    file: ValueFile
    start: int
    shape: tuple[int, ...]
    kind: str
    num_bytes: int

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) of the tensor."""
        out = np.empty(stop - start, np.uint8)
        self.file.read_into(out, self.start + start)
        return out

    def whole(self, dtype: torch.dtype) -> Tensor:
        """All of it, in the type that its bytes are of."""
        return torch.from_numpy(self.read(0, self.num_bytes)).view(dtype).view(self.shape)

    def require(self, kinds: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """ModelError unless it is of one of these types and of this shape."""
        if self.kind not in kinds or self.shape != shape:
            raise ModelError(
                f"{self.file.path}: tensor '{self.name}' is {self.kind} {list(self.shape)}, expected "
                f"{' or '.join(kinds)} {list(shape)}; download the model again"
            )

    def columns(self, first: int, last: int, item_bytes: int) -> NDArray[np.uint8]:
        """Columns [first, last) of a matrix of items of so many bytes: [rows, (last − first) · item_bytes]."""
        num_rows, num_columns = self.shape
        out = np.empty((num_rows, (last - first) * item_bytes), np.uint8)
        for row in range(num_rows):
            self.file.read_into(out[row], self.start + (row * num_columns + first) * item_bytes)
        return out


@dataclass(frozen=True)
class QuantisedTensor:
    """A matrix [rows, columns] of de-quantised values.

    kind: what it is stored as, for users (`nf4`). dtype: of its values. rows(start, stop): those rows, in fp32 or in `dtype`. min_rows:
    that are made at a time, for formats that store a matrix by columns, of which short runs are slow to read.
    """

    name: str
    file: ValueFile
    shape: tuple[int, int]
    kind: str
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor]
    min_rows: int = 1

    def read_into(self, out: Tensor, first_row: int = 0) -> None:
        """Fill `out` with rows from first_row on, in its own type. ModelError for NaN and infinities."""
        self.file.require_unchanged()
        step = max(self.min_rows, PIECE_VALUES // self.shape[1], 1)
        for begin in range(0, len(out), step):
            piece = out[begin : begin + step]
            values = self.rows(first_row + begin, first_row + begin + len(piece)).to(self.dtype)
            piece.copy_(values)
            require_finite(piece, self.name, self.file.path)

    def gather(self, rows_N: Tensor) -> Tensor:
        """Some rows in any order, [N, columns] in `dtype`. ModelError for NaN and infinities."""
        out = torch.empty(len(rows_N), self.shape[1], dtype=self.dtype)
        for place, row in enumerate(rows_N.tolist()):
            self.read_into(out[place : place + 1], row)
        return out
