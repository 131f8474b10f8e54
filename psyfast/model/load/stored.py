"""Values in a file: rows read when they are wanted, in pieces that stay in a core's cache, into memory of our own.

Nothing is mapped: a mapped page counts as this process's memory for as long as the system likes, and a disk's error or
a file that was cut short would kill the process where a read raises.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psyfast.errors import ModelError

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types whose stored bytes are the values, as safetensors and GGUF files call them."""

PIECE_VALUES = 1 << 17

_EXPONENT = {
    torch.float32: (np.uint32, 0x7F80_0000),
    torch.float16: (np.uint16, 0x7C00),
    torch.bfloat16: (np.uint16, 0x7F80),
}


class ValueFile:
    """A file of weights, open for reading at any place by any thread. Raises ModelError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ModelError(f"{path}: cannot be opened ({error}); check that it is there and may be read") from error
        self._state = self._state_now()

    def read_into(self, out: NDArray[np.uint8], start: int) -> None:
        """Fill `out` with the bytes from `start` on."""
        view, done = out.data, 0
        while done < len(view):
            try:
                count = os.preadv(self._file.fileno(), [view[done:]], start + done)
            except OSError as error:
                raise ModelError(f"{self.path}: cannot be read at byte {start + done:,} ({error})") from error
            if not count:
                raise ModelError(f"{self.path}: ends at byte {start + done:,}, inside a tensor; download it again")
            done += count

    def require_unchanged(self) -> None:
        """Refuse a file that was written to since it was opened: its weights would be two models' in one run."""
        if self._state_now() != self._state:
            raise ModelError(f"{self.path}: was changed while its weights were in use; bring it back and start again")

    def _state_now(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor's values lie, row after row (a vector is one row), and what makes values of their bytes.

    kind: the type as the file calls it. dtype: of the values, fp32 where they are de-quantised. row_bytes: of one row.
    """

    name: str
    file: ValueFile
    start: int
    shape: tuple[int, ...]
    kind: str
    dtype: torch.dtype
    row_bytes: int
    values_of: Callable[[NDArray[np.uint8]], Tensor]

    def read_into(self, out: Tensor, first_row: int = 0) -> None:
        """Fill `out` with rows from first_row on, in its own type. ModelError for NaN and infinities."""
        self.file.require_unchanged()
        rows = out if out.dim() > 1 else out[None]
        step = max(1, PIECE_VALUES // max(1, rows[0].numel())) if len(rows) else 1
        for begin in range(0, len(rows), step):
            piece = rows[begin : begin + step]
            start = self.start + (first_row + begin) * self.row_bytes
            if PLAIN.get(self.kind) == out.dtype:
                self.file.read_into(piece.view(torch.uint8).numpy().reshape(-1), start)
            else:
                stored = np.empty(len(piece) * self.row_bytes, np.uint8)
                self.file.read_into(stored, start)
                piece.copy_(self.values_of(stored).view(piece.shape))
            require_finite(piece, self.name, self.file.path)

    def gather(self, rows_N: Tensor) -> Tensor:
        """Some rows of a matrix, in any order, [N, columns]. ModelError for NaN and infinities."""
        self.file.require_unchanged()
        out = torch.empty(len(rows_N), *self.shape[1:], dtype=self.dtype)
        step = max(1, PIECE_VALUES // max(1, out.shape[1]))
        for begin in range(0, len(out), step):
            piece = out[begin : begin + step]
            stored = np.empty((len(piece), self.row_bytes), np.uint8)
            for place, row in enumerate(rows_N[begin : begin + step].tolist()):
                self.file.read_into(stored[place], self.start + row * self.row_bytes)
            piece.copy_(self.values_of(stored.reshape(-1)).view(piece.shape))
            require_finite(piece, self.name, self.file.path)
        return out


def plain_tensor(
    name: str, file: ValueFile, start: int, shape: tuple[int, ...], kind: str, row_bytes: int
) -> StoredTensor:
    """A tensor of one of the PLAIN types."""
    dtype = PLAIN[kind]
    return StoredTensor(
        name, file, start, shape, kind, dtype, row_bytes, lambda stored: torch.from_numpy(stored).view(dtype)
    )


def require_finite(values: Tensor, name: str, path: Path) -> None:
    """ModelError naming the tensor if a value is NaN or infinite: its exponent is all ones."""
    kind, exponent = _EXPONENT[values.dtype]
    bits = values.view(torch.uint8).numpy().view(kind)
    if bits.size and int((bits & exponent).max()) == exponent:
        as_what = str(values.dtype).removeprefix("torch.")
        raise ModelError(
            f"{path}: tensor '{name}' holds NaN or infinity (as {as_what}); download the model again, or ask who made it"
        )
