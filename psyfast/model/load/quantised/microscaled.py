"""MXFP4 (OCP Microscaling Formats 1.0): four bits a value, and a power of two for every 32 of a row.

As gpt-oss ships its experts: `X_blocks` [experts, rows, groups, 16], two codes a byte, the lower four bits first, and
`X_scales` [experts, rows, groups], exponents with a bias of 127. Gate and up rows stand in turn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.fused_experts import GROUP, Part, parts_of
from psyfast.model.load.quantised.tensor import QuantisedTensor, RawTensor

BIAS = 127
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_OF_CODE = torch.tensor([*_VALUES, *(-value for value in _VALUES)])
_OF_BYTE = torch.stack([_OF_CODE[torch.arange(256) % 16], _OF_CODE[torch.arange(256) // 16]], dim=1)


def mxfp4_experts(stored: str, blocks: RawTensor, scales: RawTensor) -> dict[str, QuantisedTensor]:
    """The matrices of a layer's experts, by their names. ModelError where shapes do not fit."""
    if len(blocks.shape) != 4:
        raise ModelError(
            f"{blocks.file.path}: tensor '{blocks.name}' has shape {list(blocks.shape)}, expected [experts, rows, groups, "
            f"{GROUP // 2}]; download the model again"
        )
    num_experts, num_rows, num_groups = blocks.shape[:3]
    blocks.require(("U8",), (num_experts, num_rows, num_groups, GROUP // 2))
    scales.require(("U8",), (num_experts, num_rows, num_groups))
    parts = parts_of(stored, num_experts)
    if any(num_rows % part.step for part in parts.values()):
        raise ModelError(
            f"{blocks.file.path}: tensor '{blocks.name}' has {num_rows} rows, expected a gate's and an up projection's in turn; "
            "download the model again"
        )
    return {name: _expert(name, part, blocks, scales) for name, part in parts.items()}


def _expert(name: str, part: Part, blocks: RawTensor, scales: RawTensor) -> QuantisedTensor:
    """Rows `first`, `first + step` … of one expert, exact in bf16 but for exponents at the ends of its range."""
    _, num_rows, num_groups, group_bytes = blocks.shape

    def stored(raw: RawTensor, start: int, stop: int) -> Tensor:
        """Bytes of those rows [rows, bytes a row]; the rows between them are read and left."""
        row_bytes = raw.num_bytes // (raw.shape[0] * num_rows)
        first = (part.expert * num_rows + part.first + start * part.step) * row_bytes
        last = (part.expert * num_rows + part.first + (stop - 1) * part.step + 1) * row_bytes
        return torch.from_numpy(np.ascontiguousarray(raw.read(first, last).reshape(-1, row_bytes)[:: part.step]))

    def rows(start: int, stop: int) -> Tensor:
        codes, exponents = stored(blocks, start, stop).int(), stored(scales, start, stop).int()
        values = _OF_BYTE[codes].view(-1, num_groups, 2 * group_bytes)
        return torch.ldexp(values, (exponents - BIAS)[:, :, None]).view(len(codes), -1)

    shape = num_rows // part.step, num_groups * GROUP
    return QuantisedTensor(name, blocks.file, shape, "mxfp4", torch.bfloat16, rows)
