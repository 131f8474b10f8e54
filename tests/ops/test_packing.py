"""Packing: a matrix that is read in pieces gives the panels of the whole one."""

import pytest
import torch

from psyfast.errors import BackendError
from psyfast.ops.cpu_packing import ALIGNMENT, fresh_words, pack
from psyfast.ops.records import DeferredMatrix, Lane


def deferred(weight, log=None):
    def read(start, stop):
        assert 0 <= start < stop <= len(weight)
        if log is not None:
            log.append((start, stop))
        return weight[start:stop].clone()

    return DeferredMatrix(tuple(weight.shape), weight.dtype, read)


def expected_panels(weight, columns, lane):
    """[panels, inner steps, 64] by the definition in csrc/pack.h, as int32."""
    inner = weight.shape[1]
    rows = torch.zeros(-(-len(columns) // 64) * 64, inner + inner % 2)
    for place, row in enumerate(columns.tolist()):
        if row >= 0:
            rows[place, :inner] = weight[row].float()
    operands = rows[:, :inner].contiguous() if lane is Lane.FP32 else rows.bfloat16()
    words = operands.view(torch.int32)
    return words.view(-1, 64, words.shape[1]).transpose(1, 2).flatten()


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "inner"), [(1, 1), (64, 2), (65, 7), (700, 33), (1300, 130)])
@pytest.mark.parametrize("order", ["own", "mixed"])
def test_panels_are_those_of_the_definition(num_rows, inner, dtype, lane, order):
    torch.manual_seed(num_rows)
    weight = torch.randn(num_rows, inner).to(dtype)
    columns = torch.arange(num_rows)
    if order == "mixed":  # two runs of neighbours in turn, and gaps
        columns = torch.cat([columns[num_rows // 2 :], torch.full((5,), -1), columns[: num_rows // 2]])
    wanted = expected_panels(weight, columns, lane)
    for matrix in (weight, deferred(weight)):
        assert torch.equal(pack("w", matrix, lane, columns), wanted)
    if order == "own":
        assert torch.equal(pack("w", deferred(weight), lane, num_threads=1), wanted)


def test_columns_without_a_row_are_zeros_and_read_nothing():
    log = []
    columns = torch.cat([torch.full((512,), -1), torch.arange(3)])
    panels = pack("w", deferred(torch.ones(3, 4), log), Lane.FP32, columns).view(torch.float32).view(-1, 4, 64)
    assert log == [(0, 3)] and panels[:8].abs().sum() == 0 and panels[8, :, :3].sum() == 12


def test_each_row_is_read_once():
    log = []
    gate_and_up = torch.stack([torch.arange(640).view(-1, 32), torch.arange(640, 1280).view(-1, 32)], 1).flatten()
    pack("w", deferred(torch.zeros(1280, 4), log), Lane.BF16, gate_and_up)
    assert sorted(row for start, stop in log for row in range(start, stop)) == list(range(1280))
    assert len(log) == 6  # a run of gate and one of up for each block of 512 columns


@pytest.mark.parametrize("count", [1, 1000, 3_000_001])
def test_panels_stand_at_whole_cache_lines(count):
    words = fresh_words(count)
    assert len(words) == count and words.data_ptr() % ALIGNMENT == 0 and words.is_contiguous()


def test_weights_of_another_type_are_refused():
    with pytest.raises(BackendError, match=r"w is torch\.float16, expected"):
        pack("w", deferred(torch.zeros(4, 4, dtype=torch.float16)), Lane.BF16)
