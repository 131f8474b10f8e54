"""Streamed weights: layers read and prepared by a thread just before they are used, and dropped after."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from psyfast.errors import ModelError, PsyfastError
from psyfast.model.load.assembly import Assembler
from psyfast.ops.records import HeadWeights, LayerWeights, PreparedLayer
from psyfast.ops.registry import Operators

READ_AHEAD = 1
PREPARING_THREADS = 1
"""The kernels keep all cores busy; one more thread beside them has time enough to prepare a layer while one is run."""


class StreamedWeights:
    """A model whose layers pass through memory in turn, again and again (an engine's WeightSource).

    While layer i is run, the `read_ahead` layers after it are read and prepared, layer 0 after the last one; so
    1 + read_ahead prepared layers are in memory at most. What the thread stumbles over is raised by `layer`, as ModelError.
    `close` ends the thread, as does the `with` statement.
    """

    def __init__(
        self, assembler: Assembler, num_layers: int, operators: Operators, *, read_ahead: int = READ_AHEAD
    ) -> None:
        self.embedding = assembler.embedding()
        self._assembler, self._num_layers, self._operators = assembler, num_layers, operators
        self._read_ahead = min(read_ahead, num_layers - 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="psyfast-weights")
        self._coming: dict[int, Future[PreparedLayer]] = {}

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32."""
        return self.embedding.rows(token_ids_T)

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer's weights, as soon as they are there; the layers after it are asked for."""
        wanted = [(layer_idx + ahead) % self._num_layers for ahead in range(self._read_ahead + 1)]
        for stale in self._coming.keys() - set(wanted):  # of a batch that was broken off
            self._coming.pop(stale).cancel()
        prepared = self._ask_for(layer_idx).result()
        del self._coming[layer_idx]
        for idx in wanted[1:]:
            self._ask_for(idx)
        return prepared

    def head(self) -> HeadWeights:
        """Final norm and LM head, which stay in memory once they are prepared."""
        return self._assembler.head()

    def close(self) -> None:
        """Stop reading ahead, drop what was read, and wait for the thread to end."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def __enter__(self) -> StreamedWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask_for(self, layer_idx: int) -> Future[PreparedLayer]:
        if layer_idx not in self._coming:
            self._coming[layer_idx] = self._thread.submit(_prepared, self._assembler, self._operators, layer_idx)
        return self._coming[layer_idx]


def _prepared(assembler: Assembler, operators: Operators, layer_idx: int) -> PreparedLayer:
    """A function of its own, so that what waits to be read does not keep the source alive."""
    try:
        layer: LayerWeights = assembler.layer(layer_idx)
        return operators.prepare_layer(layer, num_threads=PREPARING_THREADS)
    except PsyfastError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: torch's, where memory is short
        raise ModelError(f"layer {layer_idx} cannot be read and prepared ({error}); use a smaller model") from error
