"""Integers of a few bits packed into words of 32, a scale and a zero for each group of inputs: GPTQ and AWQ.

    value[out, in] = (code − zero[group of in, out]) · scale[group of in, out]

Both store a matrix transposed, [in, out]; scales and zeros are read with the columns they belong to, as all of a model's would
be an eighth of its file in memory. GPTQ (Frantar et al. 2023) packs along the inputs, lowest bits first, and its zeros
are stored less one in the first version of its format. AWQ (Lin et al. 2024) packs 8 outputs in the order 0 2 4 6 1 3 5 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.quantised.tensor import QuantisedTensor, RawTensor

WORD_BITS = 32
MIN_ROWS = 512
_AWQ_SHIFTS = np.array([0, 16, 4, 20, 8, 24, 12, 28], np.uint32)
"""Where the output 0, 1, … of a word's eight stands: 0 2 4 6 1 3 5 7 from the lowest bits up."""


@dataclass(frozen=True)
class Packing:
    """How a file's integers are packed. bits: of a code. zero_offset: what a stored zero lacks (1 in GPTQ's first format)."""

    method: str
    bits: int
    group_size: int
    zero_offset: int = 0


def gptq(name: str, parts: Mapping[str, RawTensor], packing: Packing) -> QuantisedTensor:
    """The matrix of `qweight`, `qzeros`, `scales` and `g_idx` (groups in the order of the inputs where it is not there)."""
    qweight, qzeros, scales = (_part(name, parts, suffix) for suffix in (".qweight", ".qzeros", ".scales"))
    bits, a_word = packing.bits, WORD_BITS // packing.bits
    num_in, num_out = qweight.shape[0] * a_word, qweight.shape[-1]
    qweight.require(("I32",), (num_in // a_word, num_out))
    group_of_in = _groups(parts, num_in, packing.group_size)
    num_groups = int(group_of_in.max()) + 1 if ".g_idx" in parts else -(-num_in // packing.group_size)
    qzeros.require(("I32",), (num_groups, num_out // a_word))
    scales.require(("F16", "BF16", "F32"), (num_groups, num_out))
    shifts = np.arange(0, WORD_BITS, bits, dtype=np.uint32)

    def rows(start: int, stop: int) -> Tensor:
        words = qweight.columns(start, stop, 4).view(np.uint32)
        codes = _unpacked(words, shifts, bits).transpose(1, 0, 2).reshape(stop - start, num_in)
        zeros = _zeros(qzeros, shifts, bits, start, stop) + packing.zero_offset
        scale = _real_columns(scales, start, stop).T[:, group_of_in]
        return (torch.from_numpy(codes).float() - zeros.T[:, group_of_in]) * scale

    return QuantisedTensor(name, qweight.file, (num_out, num_in), f"gptq{bits}", torch.float32, rows, MIN_ROWS)


def awq(name: str, parts: Mapping[str, RawTensor], packing: Packing) -> QuantisedTensor:
    """The matrix of `qweight`, `qzeros` and `scales`."""
    qweight, qzeros, scales = (_part(name, parts, suffix) for suffix in (".qweight", ".qzeros", ".scales"))
    num_in, num_out = qweight.shape[0], qweight.shape[-1] * 8
    num_groups = -(-num_in // packing.group_size)
    qweight.require(("I32",), (num_in, num_out // 8))
    qzeros.require(("I32",), (num_groups, num_out // 8))
    scales.require(("F16", "BF16", "F32"), (num_groups, num_out))
    group_of_in = torch.arange(num_in) // packing.group_size

    def rows(start: int, stop: int) -> Tensor:
        first, last = start // 8, -(-stop // 8)
        words = qweight.columns(first, last, 4).view(np.uint32)
        codes = torch.from_numpy(_unpacked(words, _AWQ_SHIFTS, 4).reshape(num_in, (last - first) * 8))
        codes = codes[:, start - first * 8 : stop - first * 8]
        zeros = _zeros(qzeros, _AWQ_SHIFTS, 4, start, stop)[group_of_in]
        return ((codes.float() - zeros) * _real_columns(scales, start, stop)[group_of_in]).T

    return QuantisedTensor(name, qweight.file, (num_out, num_in), "awq4", torch.float32, rows, MIN_ROWS)


def _part(name: str, parts: Mapping[str, RawTensor], suffix: str) -> RawTensor:
    if suffix not in parts:
        base = name.removesuffix(".weight")
        raise ModelError(
            f"{next(iter(parts.values())).file.path}: tensor '{base}{suffix}' is missing; download it again"
        )
    return parts[suffix]


def _groups(parts: Mapping[str, RawTensor], num_in: int, group_size: int) -> Tensor:
    if ".g_idx" not in parts:
        return torch.arange(num_in) // group_size
    stored = parts[".g_idx"]
    stored.require(("I32",), (num_in,))
    groups = stored.whole(torch.int32).long()
    if int(groups.min()) < 0 or int(groups.max()) >= num_in:
        raise ModelError(f"{stored.file.path}: tensor '{stored.name}' names groups outside of 0 to {num_in - 1}")
    return groups


def _unpacked(words: NDArray[np.uint32], shifts: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """[rows, columns, codes a word]."""
    codes: NDArray[np.uint32] = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8)


def _zeros(qzeros: RawTensor, shifts: NDArray[np.uint32], bits: int, start: int, stop: int) -> Tensor:
    """Zeros of the outputs [start, stop), packed along them: [groups, outputs], fp32."""
    a_word = WORD_BITS // bits
    first, last = start // a_word, -(-stop // a_word)
    words = qzeros.columns(first, last, 4).view(np.uint32)
    zeros = torch.from_numpy(_unpacked(words, shifts, bits).reshape(len(words), (last - first) * a_word))
    return zeros[:, start - first * a_word : stop - first * a_word].float()


def _real_columns(stored: RawTensor, start: int, stop: int) -> Tensor:
    """Columns [start, stop) in fp32."""
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[stored.kind]
    return torch.from_numpy(stored.columns(start, stop, dtype.itemsize)).view(dtype).float()
