"""Layers that pass through two buffers: the same values as resident ones, in any order, and no more memory than two."""

import pytest
import torch

from psyfast.ops.gpu.pinned import NUM_BUFFERS, PinnedLayers, _with_tensors
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    MlpWeights,
    Norm,
    PreparedLayer,
    Rope,
)

CPU = torch.device("cpu")
ROPE = Rope(torch.rand(4))


def layer(hidden, dtype=torch.bfloat16):
    """A layer of odd sizes, so that matrices do not end where the next may begin."""
    norm = Norm(torch.rand(hidden), 1e-6)
    return PreparedLayer(
        attn_in=AttnInWeights(norm, torch.randn(3 * 8, hidden).to(dtype), None, 1, 1, 8, ROPE),
        attention=AttentionParams(0.5, sinks_H=torch.rand(1)),
        attn_out=AttnOutWeights(torch.randn(hidden, 8).to(dtype), bias=torch.rand(hidden)),
        mlp=MlpWeights(norm, torch.randn(6, hidden), torch.randn(hidden, 3).to(dtype)),
    )


def tensors(record):
    found = []
    _with_tensors(record, lambda tensor: found.append(tensor) or tensor)
    return found


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("order", [range(5), [0, 1, 2, 3, 4, 0, 1], [3, 3, 0, 4, 2, 1, 2], [4]], ids=str)
def test_every_layer_is_what_it_was_whatever_the_order(order):
    layers = [layer(13 + i) for i in range(5)]
    source = PinnedLayers(layers, CPU)
    for idx in order:
        assert same(source.layer(idx), layers[idx]), idx
    source.close()


def test_the_next_layer_is_on_its_way_and_the_one_in_use_is_not_touched():
    layers = [layer(16) for _ in range(4)]
    source = PinnedLayers(layers, CPU)
    for idx in [0, 1, 2, 3, 0]:
        found = source.layer(idx)
        assert (idx + 1) % 4 in source._holds
        assert same(found, layers[idx])


@pytest.mark.parametrize("count", [1, 2])
def test_few_layers(count):
    layers = [layer(9) for _ in range(count)]
    source = PinnedLayers(layers, CPU)
    for idx in [*range(count), *range(count)]:
        assert same(source.layer(idx), layers[idx])


def test_a_layer_that_stands_for_several_is_in_memory_once():
    first, second = layer(8), layer(8)
    source = PinnedLayers([first, second, first, second, first], CPU)
    blocks = {packed.block.data_ptr() for layer in source._layers for _, packed in layer._parts.values()}
    assert len(blocks - {0}) == 2 * 3
    for idx in range(5):
        assert same(source.layer(idx), (first, second)[idx % 2])


def test_matrices_pass_through_two_buffers_and_what_is_small_stays():
    layers = [layer(32) for _ in range(6)]
    source = PinnedLayers(layers, CPU)
    places = set()
    for idx in range(6):
        found = source.layer(idx)
        assert found.attn_in.rope is ROPE  # tables of angles are kept by the record's identity
        assert all(tensor.data_ptr() % 8 == 0 for tensor in tensors(found))
        places.add(found.mlp.gate_up_proj.untyped_storage().data_ptr())
    assert len(places) == NUM_BUFFERS


class LateTransfers:
    """A device that copies as late as it may and works through what was queued as late as it may.

    A copy happens when somebody waits for it, and not before the work that the buffer was used for is done; a use looks
    at its layer when it must be done, at the latest possible moment, so that a buffer written too early shows.
    """

    def __init__(self):
        self.pending, self.uses, self.marked = {}, [], {}

    def bring(self, buffer_idx, copies):
        assert buffer_idx not in self.pending or self.pending[buffer_idx] is None, (
            "a copy before the last was waited for"
        )
        self.pending[buffer_idx] = (copies, self.marked.get(buffer_idx, 0))

    def wait(self, buffer_idx):
        copy = self.pending.get(buffer_idx)
        if copy is not None:
            copies, uses_before = copy
            self.work_off(uses_before)
            for place, block in copies:
                place.copy_(block)
            self.pending[buffer_idx] = None

    def done(self, buffer_idx):
        self.marked[buffer_idx] = len(self.uses)

    def finish(self):
        self.work_off(len(self.uses))

    def use(self, found, wanted):
        self.uses.append((found, wanted))

    def work_off(self, count):
        for i, use in enumerate(self.uses[:count]):
            if use is not None:
                assert same(*use), f"use {i} found another layer"
                self.uses[i] = None


def run_late(source_type, num_layers=4, batches=3):
    layers, device = [layer(11 + i) for i in range(num_layers)], LateTransfers()
    source = source_type(layers, CPU, device)
    for idx in list(range(num_layers)) * batches:
        device.use(source.layer(idx), layers[idx])
    source.close()


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5])
def test_no_copy_overtakes_the_work_and_no_work_the_copy(num_layers):
    run_late(PinnedLayers, num_layers)


class NeverWaits(PinnedLayers):
    def layer(self, layer_idx):
        wait, self._transfers.wait = self._transfers.wait, lambda buffer_idx: None
        found = super().layer(layer_idx)
        self._transfers.wait = wait
        return found


class NeverSaysDone(PinnedLayers):
    def layer(self, layer_idx):
        done, self._transfers.done = self._transfers.done, lambda buffer_idx: None
        found = super().layer(layer_idx)
        self._transfers.done = done
        return found


@pytest.mark.parametrize("broken", [NeverWaits, NeverSaysDone])
def test_a_missing_event_shows(broken):
    with pytest.raises(AssertionError, match=r"a copy before the last|found another layer"):
        run_late(broken)
