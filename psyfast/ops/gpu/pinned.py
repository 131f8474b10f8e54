"""Prepared layers in pinned host memory, brought to the device one ahead of the layer in use: a double buffer.

    copies      | 0 |  1  |        2        |   3 …       a stream of its own
    the engine      |  0  |  1  |           |  2  | …

The matrices of a layer's part are one block of host memory, so few copies bring them. Two blocks on the device take turns: a copy
into one waits until the engine is done with what was there, and the engine waits until the copy has arrived. Norms,
biases and rotary embeddings are small, and stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from psyfast.ops.records import PreparedLayer

ALIGNMENT = 256  # bytes, as the device's allocator aligns
NUM_BUFFERS = 2


Copies = Sequence[tuple[Tensor, Tensor]]
"""Places in a buffer on the device, and the block of host memory that goes there."""


class Transfers(Protocol):
    """Copies into numbered buffers, which may run while the caller goes on."""

    def bring(self, buffer_idx: int, copies: Copies) -> None:
        """Copy into a buffer once what it was last used for is done."""
        ...

    def wait(self, buffer_idx: int) -> None:
        """Work that is queued from now on finds the last copy there."""
        ...

    def done(self, buffer_idx: int) -> None:
        """Work that was queued so far is what the buffer was used for."""
        ...

    def finish(self) -> None:
        """Wait until nothing is on its way."""
        ...


class CudaTransfers:
    """On a stream of its own, ordered with the calling stream by two events a buffer. Made on the calling stream."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._arrived = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]
        self._done = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]
        # What had the buffers' memory before may still be at work.
        self._stream.wait_stream(torch.cuda.current_stream(device))

    def bring(self, buffer_idx: int, copies: Copies) -> None:
        """Queue them."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._done[buffer_idx])
            for place, block in copies:
                place.copy_(block, non_blocking=True)
            self._arrived[buffer_idx].record(self._stream)

    def wait(self, buffer_idx: int) -> None:
        """The calling stream waits, the caller does not."""
        torch.cuda.current_stream(self._device).wait_event(self._arrived[buffer_idx])

    def done(self, buffer_idx: int) -> None:
        """Marks the calling stream."""
        self._done[buffer_idx].record(torch.cuda.current_stream(self._device))

    def finish(self) -> None:
        """The caller waits."""
        self._stream.synchronize()


class PlainTransfers:
    """Copies at once, for devices without streams: there is nothing to wait for."""

    def bring(self, buffer_idx: int, copies: Copies) -> None:
        """Copy."""
        for place, block in copies:
            place.copy_(block)

    def wait(self, buffer_idx: int) -> None:
        """It is there."""

    def done(self, buffer_idx: int) -> None:
        """It is done."""

    def finish(self) -> None:
        """It is finished."""


class PinnedLayers:
    """The layers of a model in order, as `layer(i)` of an engine's WeightSource; any order works, the next is the fastest.

    layers: as the operators prepared them, on any device; the same record may stand for several. transfers: by default
    those that the device has. known: blocks by the identity of a part's record, which other models of the same base may have.
    """

    def __init__(
        self,
        layers: Sequence[PreparedLayer],
        device: torch.device,
        transfers: Transfers | None = None,
        known: dict[int, _Packed] | None = None,
    ) -> None:
        blocks = {} if known is None else known
        self._layers = [_PinnedLayer(layer, device, blocks) for layer in layers]
        size = max((layer.num_bytes for layer in self._layers), default=0)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(NUM_BUFFERS)]
        self._holds: list[int | None] = [None] * NUM_BUFFERS
        self._in_use: int | None = None
        fitting = CudaTransfers(device) if device.type == "cuda" and transfers is None else PlainTransfers()
        self._transfers: Transfers = transfers or fitting

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer, in memory that holds until the next one is asked for; the one after it is on its way.

        The calling stream's work so far is what the last layer was used for.
        """
        if self._in_use is not None:
            self._transfers.done(self._in_use)
        if layer_idx not in self._holds:
            self._bring(layer_idx)
        self._in_use = self._holds.index(layer_idx)
        following = (layer_idx + 1) % len(self._layers)
        if following not in self._holds:
            self._bring(following)
        self._transfers.wait(self._in_use)
        return self._layers[layer_idx].on_device(self._buffers[self._in_use])

    def close(self) -> None:
        """Wait for what is on its way and let go of the memory."""
        self._transfers.finish()
        self._layers, self._buffers, self._holds = [], [], []

    def _bring(self, layer_idx: int) -> None:
        """Into the buffer that is not in use."""
        buffer_idx = 0 if self._in_use is None else (self._in_use + 1) % NUM_BUFFERS
        self._transfers.bring(buffer_idx, self._layers[layer_idx].copies(self._buffers[buffer_idx]))
        self._holds[buffer_idx] = layer_idx


def pinned_together(models: Sequence[Sequence[PreparedLayer]], device: torch.device) -> list[PinnedLayers]:
    """The layers of several models; a part's record that is the same in some of them is in host memory once."""
    known: dict[int, _Packed] = {}
    return [PinnedLayers(layers, device, known=known) for layers in models]


class _PinnedLayer:
    """A layer, part by part."""

    def __init__(self, layer: PreparedLayer, device: torch.device, known: dict[int, _Packed]) -> None:
        self._parts: dict[str, tuple[int, _Packed]] = {}
        self.num_bytes = 0
        for field in fields(layer):
            record = getattr(layer, field.name)
            if id(record) not in known:
                known[id(record)] = _Packed(record, device)
            self._parts[field.name] = (self.num_bytes, known[id(record)])
            self.num_bytes = _aligned(self.num_bytes + len(known[id(record)].block))

    def copies(self, buffer: Tensor) -> Copies:
        """What brings it into a buffer."""
        return [(buffer[start : start + len(part.block)], part.block) for start, part in self._parts.values()]

    def on_device(self, buffer: Tensor) -> PreparedLayer:
        """The layer, where it was brought into a buffer."""
        return PreparedLayer(**{name: part.on_device(buffer[start:]) for name, (start, part) in self._parts.items()})


class _Packed:
    """A part of a layer with its matrices in one block of host memory, pinned where a CUDA device reads it."""

    def __init__(self, part: Any, device: torch.device) -> None:
        matrices: list[Tensor] = []

        def take(tensor: Tensor) -> Tensor:
            if tensor.dim() < 2:
                return tensor.to(device)
            matrices.append(tensor)
            return tensor.new_empty(0, 0)

        self._record = _with_tensors(part, take)
        self._places: list[tuple[int, int, torch.dtype, torch.Size]] = []
        stop = 0
        for matrix in matrices:
            start = _aligned(stop)
            stop = start + matrix.numel() * matrix.itemsize
            self._places.append((start, stop, matrix.dtype, matrix.shape))
        self.block = torch.empty(stop, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for matrix, view in zip(matrices, self._views(self.block), strict=True):
            view.copy_(matrix)

    def on_device(self, place: Tensor) -> Any:
        """The part with its matrices where a copy of the block lies."""
        views = iter(self._views(place))
        return _with_tensors(self._record, lambda t: next(views) if t.dim() >= 2 else t)

    def _views(self, block: Tensor) -> list[Tensor]:
        return [block[start:stop].view(dtype).view(shape) for start, stop, dtype, shape in self._places]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _with_tensors(record: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A frozen record with its tensors changed, in the order of its fields; records without one stay the same object."""
    if isinstance(record, Tensor):
        return change(record)
    if isinstance(record, tuple):
        return tuple(_with_tensors(value, change) for value in record)
    if not is_dataclass(record) or isinstance(record, type):
        return record
    before = {field.name: getattr(record, field.name) for field in fields(record)}
    after = {name: _with_tensors(value, change) for name, value in before.items()}
    return replace(record, **after) if any(after[name] is not before[name] for name in before) else record
