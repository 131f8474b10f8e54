"""The header of a GGUF file: what it says of its model, and where each tensor lies in it.

    "GGUF" | version u32 | number of tensors u64 | number of pairs u64 | pairs | tensors | padding | values
    pair    key, type u32, value          array   type u32, count u64, values
    string  bytes u64, UTF-8              tensor  name, dimensions u32, each u64 (fastest first), type u32, offset u64

Offsets count from the first value and are multiples of `general.alignment`. The file is mapped, so values are read when
they are used; a vocabulary is only walked over until somebody asks for its strings. Whatever a damaged or hostile file
says is held against the bytes that are there before it is believed.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from psyfast.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of one number each, as struct and numpy call them."""

_U64 = struct.Struct("<Q")
_PAIR_BYTES = 8 + 4 + 1  # an empty key, its type, the smallest value
_TENSOR_BYTES = 8 + 4 + 4 + 8  # an empty name, no dimensions, type, offset


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. shape: row-major, in values; start, num_bytes: in the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    num_bytes: int


class GgufHeader:
    """A mapped GGUF file. metadata: numbers, strings and lists of numbers by key; tensors: in the file's order."""

    def __init__(self, path: Path) -> None:
        """Read and check the header; ModelError where it is not a whole GGUF file of version 2 or 3."""
        self.path = path
        self._reader = reader = _Reader(path, _mapped(path))
        num_tensors, num_pairs = _opening(reader)
        self.metadata: dict[str, Any] = {}
        self._strings: dict[str, tuple[int, int]] = {}  # of each array of strings, where it begins and their number
        for pair_idx in range(num_pairs):
            self._read_pair(f"pair {pair_idx} of {num_pairs}")
        infos = [_tensor_info(reader, f"tensor {tensor_idx} of {num_tensors}") for tensor_idx in range(num_tensors)]
        alignment = _alignment(self.metadata, path)
        self.tensors = tuple(_placed(reader, infos, -(-reader.position // alignment) * alignment, alignment))

    def _read_pair(self, what: str) -> None:
        reader = self._reader
        key = reader.text(f"the key of {what}")
        what = f"'{key}'"
        if key in self.metadata or key in self._strings:
            raise reader.damaged(f"{what} stands twice in its metadata")
        (kind,) = reader.take("I", what)
        if kind == STRING:
            self.metadata[key] = reader.text(what)
        elif kind != ARRAY:
            (self.metadata[key],) = reader.take(reader.number(kind, what), what)
        else:
            kind, count = reader.take("IQ", what)
            if kind == STRING:
                self._strings[key] = (reader.position, count)
                reader.pass_over_strings(count, what)
            else:
                self.metadata[key] = reader.take_many(count, reader.number(kind, what), what)

    def strings(self, key: str) -> list[str] | None:
        """An array of strings (a vocabulary, its merges); None where the file has none under that key."""
        if key not in self._strings:
            return None
        start, count = self._strings[key]
        return self._reader.strings_at(start, count, f"'{key}'")

    def stored(self, tensor: StoredTensor) -> NDArray[np.uint8]:
        """A tensor's bytes, straight from the file."""
        return np.frombuffer(self._reader.data, np.uint8, tensor.num_bytes, tensor.start)


class _Reader:
    """Takes values off the front of a file; ModelError where it ends before they do."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.position = 0

    def damaged(self, finding: str) -> ModelError:
        return ModelError(f"{self.path}: a damaged GGUF file: {finding}; download it again")

    def take(self, layout: str, what: str) -> tuple[Any, ...]:
        """Values of struct's `layout`, little-endian and unpadded."""
        start = self._advance(struct.calcsize("<" + layout), what)
        return struct.unpack_from("<" + layout, self.data, start)

    def take_many(self, count: int, layout: str, what: str) -> list[Any]:
        """So many values of one type."""
        start = self._advance(count * struct.calcsize("<" + layout), what)
        values: list[Any] = np.frombuffer(self.data, "<" + layout, count, start).tolist()
        return values

    def text(self, what: str) -> str:
        (size,) = self.take("Q", what)
        start = self._advance(size, what)
        return self._decoded(self.data[start : start + size], what)

    def number(self, kind: int, what: str) -> str:
        """The layout of a number's type."""
        if kind not in NUMBERS:
            raise self.damaged(f"{what} is of type {kind}, expected one of {', '.join(map(str, sorted(NUMBERS)))}")
        return NUMBERS[kind]

    def require_room(self, count: int, least_bytes: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold before anything is made for it."""
        if count * least_bytes > self.size - self.position:
            left = self.size - self.position
            raise self.damaged(f"it says that it holds {count:,} {what}, and {left:,} bytes are left for them")

    def pass_over_strings(self, count: int, what: str) -> None:
        self.require_room(count, _U64.size, f"strings in {what}")
        unpack_from, data, position, last = _U64.unpack_from, self.data, self.position, self.size - _U64.size
        for _ in range(count):
            if position > last:
                raise self.cut_off(position + _U64.size, what)
            position += _U64.size + unpack_from(data, position)[0]
        self._advance(position - self.position, what)

    def strings_at(self, position: int, count: int, what: str) -> list[str]:
        """An array that was passed over before."""
        unpack_from, data = _U64.unpack_from, self.data
        found = []
        for _ in range(count):
            start = position + _U64.size
            position = start + unpack_from(data, position)[0]
            found.append(data[start:position])
        try:
            return [value.decode() for value in found]
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} holds a string that is not UTF-8 ({error.reason})") from error

    def _advance(self, num_bytes: int, what: str) -> int:
        start, self.position = self.position, self.position + num_bytes
        if self.position > self.size:
            raise self.cut_off(self.position, what)
        return start

    def cut_off(self, end: int, what: str) -> ModelError:
        return self.damaged(f"it is cut off: {what} ends at byte {end:,}, the file at byte {self.size:,}")

    def _decoded(self, value: bytes, what: str) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not UTF-8 ({error.reason})") from error


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(f"{path}: cannot be read as a GGUF file ({error}); download it again") from error


def _opening(reader: _Reader) -> tuple[int, int]:
    """Numbers of tensors and of pairs."""
    magic = reader.data[: len(MAGIC)]
    if magic != MAGIC:
        raise ModelError(
            f"{reader.path}: not a GGUF file: begins with {magic!r}, expected {MAGIC!r}; name another file"
        )
    reader.take("4s", "the opening")
    (version,) = reader.take("I", "the opening")
    if version not in VERSIONS:
        got = "big-endian" if version and version & 0xFFFF == 0 else f"version {version}"
        expected = "little-endian, version " + " or ".join(map(str, VERSIONS))
        raise ModelError(f"{reader.path}: a GGUF file of {got}, expected {expected}; convert the model again")
    num_tensors, num_pairs = reader.take("QQ", "the opening")
    reader.require_room(num_pairs, _PAIR_BYTES, "pairs of metadata")
    reader.require_room(num_tensors, _TENSOR_BYTES, "tensors")
    return num_tensors, num_pairs


def _alignment(metadata: Mapping[str, Any], path: Path) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{path}: 'general.alignment' is {alignment!r}, expected a power of two; download it again")
    return alignment


def _tensor_info(reader: _Reader, what: str) -> tuple[str, tuple[int, ...], int, int]:
    """Name, row-major shape, type and offset."""
    name = reader.text(f"the name of {what}")
    what = f"tensor '{name}'"
    (num_dimensions,) = reader.take("I", what)
    if num_dimensions > MAX_DIMENSIONS:
        raise reader.damaged(f"{what} has {num_dimensions:,} dimensions, expected at most {MAX_DIMENSIONS}")
    shape = reader.take(f"{num_dimensions}Q", what)[::-1]
    kind, offset = reader.take("IQ", what)
    return name, shape, kind, offset


def _placed(
    reader: _Reader, infos: list[tuple[str, tuple[int, ...], int, int]], first: int, alignment: int
) -> Iterator[StoredTensor]:
    """The tensors, each with its place checked. first: where the values begin."""
    tensors = [_stored(reader, *info, first, alignment) for info in infos]
    if len({tensor.name for tensor in tensors}) < len(tensors):
        twice = next(tensor.name for i, tensor in enumerate(tensors) if tensor.name in {t.name for t in tensors[:i]})
        raise reader.damaged(f"tensor '{twice}' stands in it twice")
    in_order = sorted(tensors, key=lambda tensor: (tensor.start, tensor.num_bytes))
    for before, after in pairwise(in_order):
        if before.start + before.num_bytes > after.start:
            raise reader.damaged(f"tensors '{before.name}' and '{after.name}' overlap")
    yield from tensors


def _stored(
    reader: _Reader, name: str, shape: tuple[int, ...], kind: int, offset: int, first: int, alignment: int
) -> StoredTensor:
    try:
        known = GGMLQuantizationType(kind)
    except ValueError as error:
        raise ModelError(
            f"{reader.path}: tensor '{name}' is of type {kind}, which the installed gguf package does not know; "
            "pip install --upgrade gguf, or use a file in another quantisation"
        ) from error
    block_size, block_bytes = GGML_QUANT_SIZES[known]
    row = shape[-1] if shape else 1
    if row % block_size:
        raise reader.damaged(
            f"tensor '{name}' has rows of {row:,} values, expected a multiple of {known.name}'s {block_size}"
        )
    if offset % alignment:
        raise reader.damaged(f"tensor '{name}' lies at offset {offset:,}, expected a multiple of {alignment}")
    start, num_bytes = first + offset, math.prod(shape) // block_size * block_bytes
    if start + num_bytes > reader.size:
        raise reader.cut_off(start + num_bytes, f"tensor '{name}'")
    return StoredTensor(name, shape, known, start, num_bytes)
