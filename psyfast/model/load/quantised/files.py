"""Safetensors with quantised matrices among them, under the interface of plain ones: `X.weight` and its values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.fused_experts import BLOCKS, holds_matrices
from psyfast.model.load.quantised.four_bit import STATE, four_bit
from psyfast.model.load.quantised.microscaled import mxfp4_experts
from psyfast.model.load.quantised.packed import WORD_BITS, Packing, awq, gptq
from psyfast.model.load.quantised.scaled import fp8_blocks, int8
from psyfast.model.load.quantised.tensor import QuantisedTensor, RawTensor
from psyfast.model.load.tensors import SafetensorsFiles, by_frequency, whole

METHODS = ("bitsandbytes", "fp8", "gptq", "awq", "mxfp4")
Settings = Mapping[str, Any]

_COMPANIONS = {
    "bitsandbytes": (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"),
    "gptq": (".qweight", ".qzeros", ".scales", ".g_idx"),
    "awq": (".qweight", ".qzeros", ".scales"),
}

_MARKS = {
    "bitsandbytes": (".weight.absmax", ".weight.quant_map", f".weight{STATE}nf4", f".weight{STATE}fp4", ".SCB"),
    "fp8": (".weight_scale_inv",),
    "gptq": (".qweight",),
    "awq": (".qweight",),
}
"""What follows `X` in the name of a tensor that says that `X.weight` is quantised."""


class QuantisedFiles:
    """A model's safetensors where `quantization_config` says how its matrices are stored.

    Tensors without companions are read as they are. Raises ModelError for a method, an option or companions that do not fit.
    """

    def __init__(self, files: SafetensorsFiles, settings: Settings, where: str) -> None:
        method = method_of(settings, where)
        self._plain = files
        self.files: tuple[Path, ...] = files.files
        if method == "mxfp4":
            self._quantised, taken = _mxfp4(files, where)
        else:
            self._quantised = _quantised(files, method, settings, where)
            taken = {part for tensor_name in self._quantised for part in _parts(files, tensor_name, method)}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: shape for name, shape in files.shapes.items() if name not in taken
        }
        self.shapes |= {name: tensor.shape for name, tensor in self._quantised.items()}

    def stored_name(self, name: str) -> str:
        """As the file has it, or would have it if it were plain."""
        return self._plain.stored_name(name)

    def dtype(self, name: str) -> torch.dtype:
        """Of the values: fp32, or what a 4-bit model was quantised from."""
        return self._quantised[name].dtype if name in self._quantised else self._plain.dtype(name)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self, name)

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Rows from first_row on."""
        if name in self._quantised:
            self._quantised[name].read_into(out, first_row)
        else:
            self._plain.read_into(name, out, first_row)

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows."""
        return self._quantised[name].gather(rows_N) if name in self._quantised else self._plain.gather(name, rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """What matrices are stored as, the most frequent first, then the types of the rest."""
        rest = (self._plain.raw(name).kind for name in self.shapes if name not in self._quantised)
        return (*by_frequency(tensor.kind for tensor in self._quantised.values()), *by_frequency(rest))


def method_of(settings: Settings, where: str) -> str:
    """Its name, one of METHODS. Raises ModelError for another."""
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in METHODS:
        raise ModelError(
            f"{where}: weights quantised with '{method}' cannot be read; supported: {', '.join(METHODS)} in safetensors, and GGUF"
        )
    return method


def _parts(files: SafetensorsFiles, weight: str, method: str) -> dict[str, str]:
    """Names in the files of what belongs to a matrix `X.weight`, each with what follows `X.weight` or `X`."""
    base = weight.removesuffix(".weight")
    if method == "bitsandbytes":
        suffixes = [*_COMPANIONS[method], *(STATE + kind for kind in ("nf4", "fp4"))]
        found = {weight + suffix: suffix for suffix in suffixes} | {base + s: s for s in (".SCB", ".weight_format")}
        found[weight] = ""
    elif method == "fp8":
        found = {weight: "", weight + "_scale_inv": "_scale_inv"}
    else:
        found = {base + suffix: suffix for suffix in _COMPANIONS[method]}
    return {name: suffix for name, suffix in found.items() if name in files.shapes}


def _quantised(files: SafetensorsFiles, method: str, settings: Settings, where: str) -> dict[str, QuantisedTensor]:
    marks = _MARKS[method]
    names = {name.removesuffix(mark) + ".weight" for mark in marks for name in files.shapes if name.endswith(mark)}
    make = {"bitsandbytes": _bitsandbytes, "fp8": _fp8, "gptq": _gptq, "awq": _awq}[method]
    return {
        name: make(
            files.stored_name(name),
            {suffix: files.raw(part) for part, suffix in _parts(files, name, method).items()},
            settings,
            where,
        )
        for name in sorted(names)
    }


def _bitsandbytes(name: str, parts: Mapping[str, RawTensor], settings: Settings, where: str) -> QuantisedTensor:
    if "" not in parts:
        raise ModelError(f"{where}: tensor '{name}' is missing, whose scales are there; download the model again")
    return int8(parts[""], parts[".SCB"]) if ".SCB" in parts else four_bit(parts[""], parts)


def _fp8(name: str, parts: Mapping[str, RawTensor], settings: Settings, where: str) -> QuantisedTensor:
    block = settings.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)):
        raise ModelError(f"{where}: 'weight_block_size' is {block!r}; FP8 weights are read with two block sizes")
    if "" not in parts:
        raise ModelError(f"{where}: tensor '{name}' is missing, whose scales are there; download the model again")
    if settings.get("fmt", "e4m3") != "e4m3":
        raise ModelError(f"{where}: '{name}' is no FP8 matrix of e4m3 ({settings.get('fmt')!r}); nothing else is read")
    return fp8_blocks(parts[""], parts["_scale_inv"], (block[0], block[1]))


def _gptq(name: str, parts: Mapping[str, RawTensor], settings: Settings, where: str) -> QuantisedTensor:
    bits = settings.get("bits")
    if bits not in (2, 4, 8):
        raise ModelError(f"{where}: GPTQ with bits = {bits!r} cannot be read; supported: 2, 4, 8")
    first_format = settings.get("checkpoint_format", "gptq") == "gptq"
    size = _group_size(settings, parts[".qweight"].shape[0] * WORD_BITS // bits, where)
    return gptq(name, parts, Packing("gptq", bits, size, zero_offset=1 if first_format else 0))


def _awq(name: str, parts: Mapping[str, RawTensor], settings: Settings, where: str) -> QuantisedTensor:
    version, bits = str(settings.get("version", "gemm")).lower(), settings.get("bits", 4)
    if version != "gemm" or bits != 4 or settings.get("zero_point", True) is not True:
        raise ModelError(
            f"{where}: AWQ of version '{version}' with bits = {bits} and zero_point = {settings.get('zero_point')} cannot be "
            "read; supported: gemm, 4 bits, zero points"
        )
    return awq(name, parts, Packing("awq", 4, _group_size(settings, parts[".qweight"].shape[0], where)))


def _mxfp4(files: SafetensorsFiles, where: str) -> tuple[dict[str, QuantisedTensor], set[str]]:
    """The experts' matrices, and the tensors that they are made of."""
    found: dict[str, QuantisedTensor] = {}
    taken = set()
    for blocks in sorted(name for name in files.shapes if name.endswith(BLOCKS)):
        stored = blocks.removesuffix(BLOCKS)
        if not holds_matrices(stored):  # left over, and refused by its name
            continue
        scales = stored + "_scales"
        if scales not in files.shapes:
            raise ModelError(f"{where}: tensor '{scales}' is missing; download the model again")
        taken |= {blocks, scales}
        found |= mxfp4_experts(stored, files.raw(blocks), files.raw(scales))
    return found, taken


def _group_size(settings: Settings, num_in: int, where: str) -> int:
    size = settings.get("group_size", 128)
    if type(size) is not int or (size != -1 and size < 1):
        raise ModelError(f"{where}: 'group_size' is {size!r}, expected a positive integer, or -1 for one group")
    return num_in if size == -1 else size
