"""The projections: products by torch (cuBLAS) of the lane's operands, with fp32 sums and fp32 results.

y_TO = x_TD · weight_ODᵀ
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from psyfast.ops.records import Lane

OPERAND = {Lane.FP32: torch.float32, Lane.BF16: torch.bfloat16}
TEMPORARY_BYTES = 1 << 29
"""What an operator takes for its fp32 intermediates at a time: enough rows to fill any device, on no device too much."""
MIN_ROWS_A_CHUNK = 256


@contextmanager
def exact_sums() -> Iterator[None]:
    """Inside, fp32 products are not rounded to TF32 and bf16 ones not summed in bf16, whatever the process has set."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction
    settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction = "ieee", False
    try:
        yield
    finally:
        settings.fp32_precision, settings.allow_bf16_reduced_precision_reduction = before


def product(x_TD: Tensor, weight_OD: Tensor) -> Tensor:
    """X · weightᵀ in fp32; both in one operand type, bf16 or fp32."""
    with exact_sums():
        if x_TD.dtype == torch.float32:
            return torch.mm(x_TD, weight_OD.t())
        if x_TD.device.type == "cuda":
            return torch.mm(x_TD, weight_OD.t(), out_dtype=torch.float32)
        # The CPU's product of bf16 rounds its result to bf16; products of two bf16 numbers are exact in fp32.
        return torch.mm(x_TD.float(), weight_OD.t().float())


def chunks(num_rows: int, row_bytes: int) -> Iterator[slice]:
    """Rows in chunks whose intermediates, so many bytes a row, stay within TEMPORARY_BYTES."""
    size = max(MIN_ROWS_A_CHUNK, TEMPORARY_BYTES // row_bytes)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
