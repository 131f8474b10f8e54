"""Eight bits a value: bitsandbytes' int8 with a scale a row, and FP8 (e4m3) with a scale a block, as Qwen and DeepSeek ship it."""

from __future__ import annotations

import torch
from torch import Tensor

from psyfast.model.load.quantised.tensor import QuantisedTensor, RawTensor

_ONE_OF_127 = 7.874015718698502e-3
"""1/127, the number that bitsandbytes multiplies with."""


def int8(codes: RawTensor, row_scales: RawTensor) -> QuantisedTensor:
    """Value = code · scale[row] / 127, in fp32 (Dettmers et al. 2022; `SCB` in the file). ModelError where shapes do not fit."""
    rows_, columns = codes.shape[0], codes.shape[-1]
    codes.require(("I8",), (rows_, columns))
    row_scales.require(("F32",), (rows_,))
    scales = row_scales.whole(torch.float32)[:, None]

    def rows(start: int, stop: int) -> Tensor:
        stored = torch.from_numpy(codes.read(start * columns, stop * columns)).view(torch.int8)
        return stored.view(-1, columns) * scales[start:stop] * _ONE_OF_127

    return QuantisedTensor(codes.name, codes.file, (rows_, columns), "int8", torch.float32, rows)


def fp8_blocks(codes: RawTensor, scale_inv: RawTensor, block: tuple[int, int]) -> QuantisedTensor:
    """Value = code · scale of its block, in fp32 (`weight_scale_inv` in the file is what a code is multiplied by)."""
    rows_, columns = codes.shape[0], codes.shape[-1]
    codes.require(("F8_E4M3",), (rows_, columns))
    scale_inv.require(("F32", "BF16"), (-(-rows_ // block[0]), -(-columns // block[1])))
    # kept one a block: written out along the rows, those of a model of 30B in 18,432 matrices would be 0.9 GB
    scales = scale_inv.whole(torch.bfloat16 if scale_inv.kind == "BF16" else torch.float32).float()

    def rows(start: int, stop: int) -> Tensor:
        stored = torch.from_numpy(codes.read(start * columns, stop * columns)).view(torch.float8_e4m3fn)
        of_rows = scales[torch.arange(start, stop) // block[0]].repeat_interleave(block[1], dim=1)
        return stored.view(-1, columns).float().mul_(of_rows[:, :columns])

    return QuantisedTensor(codes.name, codes.file, (rows_, columns), "fp8", torch.float32, rows)
