"""nf4 and fp4 as bitsandbytes stores them (Dettmers et al. 2023): codes of 4 bits, a scale for each block of values.

    value = map[code] · absmax[block]        absmax = nested_map[code8] · nested_absmax[block of blocks] + offset

The first of a byte's two codes is in its high half; blocks run through the matrix row after row. The product is in fp32, then
rounded to the type that the model was quantised from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.quantised.tensor import QuantisedTensor, RawTensor

STATE = ".quant_state.bitsandbytes__"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Scales:
    """absmax of blocks: stored in fp32, or quantised once more."""

    absmax: RawTensor
    block: int
    nested_map: Tensor | None
    nested_absmax: Tensor
    nested_block: int
    offset: float

    def of_blocks(self, start: int, stop: int) -> Tensor:
        """Those of blocks [start, stop), fp32."""
        if self.nested_map is None:
            return torch.from_numpy(self.absmax.read(4 * start, 4 * stop)).view(torch.float32)
        codes = torch.from_numpy(self.absmax.read(start, stop)).long()
        return self.nested_map[codes] * self.nested_absmax[torch.arange(start, stop) // self.nested_block] + self.offset


def four_bit(codes: RawTensor, parts: Mapping[str, RawTensor]) -> QuantisedTensor:
    """The matrix of a tensor `NAME` and its companions, by what follows its name. ModelError where they do not fit."""
    state = _state(codes, parts)
    kind = str(state["quant_type"])
    shape = tuple(state["shape"])
    num_values = shape[0] * shape[1]
    if codes.num_bytes != -(-num_values // 2):
        raise ModelError(
            f"{codes.file.path}: tensor '{codes.name}' has {codes.num_bytes:,} bytes, expected {-(-num_values // 2):,} "
            f"for {list(shape)} values of 4 bits; download the model again"
        )
    scales = _scales(codes, parts, state, num_values)
    quant_map = _part(codes, parts, ".quant_map")
    quant_map.require(("F32",), (16,))
    values = quant_map.whole(torch.float32)
    pairs = torch.stack([values[:, None].expand(16, 16), values[None].expand(16, 16)], -1).reshape(256, 2).contiguous()
    two_at_once = pairs.view(torch.float64).view(-1)  # a byte's two values, moved as one number

    def rows(start: int, stop: int) -> Tensor:
        first, last = start * shape[1], stop * shape[1]
        first_block, last_block = first // scales.block, -(-last // scales.block)
        begin, end = first_block * scales.block, min(last_block * scales.block, num_values)
        stored = torch.from_numpy(codes.read(begin // 2, -(-end // 2)))
        blocks = two_at_once.index_select(0, stored.int()).view(torch.float32)[: end - begin]
        of_blocks = scales.of_blocks(first_block, last_block)
        whole = (end - begin) // scales.block * scales.block
        blocks[:whole].view(-1, scales.block).mul_(of_blocks[: whole // scales.block, None])
        blocks[whole:].mul_(of_blocks[-1])
        return blocks[first - begin : last - begin].view(stop - start, shape[1])

    return QuantisedTensor(codes.name, codes.file, (shape[0], shape[1]), kind, _DTYPES[state["dtype"]], rows)


def _part(codes: RawTensor, parts: Mapping[str, RawTensor], suffix: str) -> RawTensor:
    if suffix not in parts:
        raise ModelError(
            f"{codes.file.path}: tensor '{codes.name}{suffix}' is missing, without which the 4-bit codes of "
            f"'{codes.name}' mean nothing; download the model again"
        )
    return parts[suffix]


def _state(codes: RawTensor, parts: Mapping[str, RawTensor]) -> Mapping[str, Any]:
    """The packed state: type, block size, shape, the type of the values, and how the scales were quantised."""
    packed = next((part for suffix, part in parts.items() if suffix.startswith(STATE)), None)
    where = f"{codes.file.path}: tensor '{codes.name}{STATE}…'"
    if packed is None:
        raise ModelError(f"{where} is missing; only models saved with bitsandbytes' packed state can be read")
    try:
        state = json.loads(packed.read(0, packed.num_bytes).tobytes())
        kind, block, dtype, shape = (state[key] for key in ("quant_type", "blocksize", "dtype", "shape"))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{where} cannot be read as a state ({error}); download the model again") from error
    sizes = [block, *(shape if isinstance(shape, list) else [0])]
    sound = all(type(size) is int and size > 0 for size in sizes) and len(sizes) == 3 and block % 2 == 0
    if kind not in ("nf4", "fp4") or dtype not in _DTYPES or not sound:
        raise ModelError(
            f"{where} says {kind} {shape} in blocks of {block} from {dtype}; expected nf4 or fp4, a matrix, an even block, and one of "
            f"{', '.join(_DTYPES)}"
        )
    return dict(state)


def _scales(codes: RawTensor, parts: Mapping[str, RawTensor], state: Mapping[str, Any], num_values: int) -> _Scales:
    block = int(state["blocksize"])
    num_blocks = -(-num_values // block)
    absmax = _part(codes, parts, ".absmax")
    if "nested_blocksize" not in state:
        absmax.require(("F32",), (num_blocks,))
        return _Scales(absmax, block, None, torch.empty(0), 1, 0.0)
    absmax.require(("U8",), (num_blocks,))
    nested_block = int(state["nested_blocksize"])
    nested_map, nested_absmax = _part(codes, parts, ".nested_quant_map"), _part(codes, parts, ".nested_absmax")
    nested_map.require(("F32",), (256,))
    nested_absmax.require(("F32",), (-(-num_blocks // nested_block),))
    offset = float(np.float32(state["nested_offset"]))
    whole_map, whole_absmax = nested_map.whole(torch.float32), nested_absmax.whole(torch.float32)
    return _Scales(absmax, block, whole_map, whole_absmax, nested_block, offset)
