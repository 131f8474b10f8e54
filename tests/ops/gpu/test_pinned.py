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
    assert len({packed.block.data_ptr() for packed in source._layers}) == 2
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
