"""Streamed weights: layers read and prepared by a thread just before they are used, and dropped after."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from psyfast.errors import ModelError, PsyfastError
from psyfast.model.load.assembly import Embedding
from psyfast.model.load.in_step import ModelsInStep
from psyfast.ops.records import HeadWeights, PreparedLayer

READ_AHEAD = 1


class StreamedLayers:
    """The layers of models in step, which pass through memory in turn, again and again.

    While a model runs layer i, its `read_ahead` layers after that are read and prepared, layer 0 after the last one; so
    1 + read_ahead prepared layers of every model are in memory at most, what the models have in common once. What the thread
    stumbles over is raised by `layer`, as ModelError.
    """

    def __init__(self, models: ModelsInStep, read_ahead: int) -> None:
        self._models, self._read_ahead = models, min(read_ahead, models.num_layers - 1)
        # The kernels keep all cores busy; beside them one more thread has time enough to prepare a layer while one is run.
        self._num_threads = 1 if self._read_ahead and models.num_models == 1 else torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="psyfast-weights")
        self._coming: dict[tuple[int, int], Future[PreparedLayer]] = {}

    def layer(self, layer_idx: int, which: int) -> PreparedLayer:
        """One layer of model `which`, as soon as it is there; the layers after it are asked for."""
        wanted = [(layer_idx + ahead) % self._models.num_layers for ahead in range(self._read_ahead + 1)]
        self._drop_all_but(wanted)
        prepared = self._ask_for(layer_idx, which).result()
        del self._coming[layer_idx, which]
        for idx in wanted[1:]:
            self._ask_for(idx, which)
        return prepared

    def close(self) -> None:
        """Stop reading ahead, drop what was read, and wait for the thread to end."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()

    def _ask_for(self, layer_idx: int, which: int) -> Future[PreparedLayer]:
        if (layer_idx, which) not in self._coming:
            job = self._thread.submit(_prepared, self._models, layer_idx, which, self._num_threads)
            self._coming[layer_idx, which] = job
        return self._coming[layer_idx, which]

    def _drop_all_but(self, wanted: Sequence[int]) -> None:
        """What was asked for by a batch that was broken off."""
        for stale in [key for key in self._coming if key[0] not in wanted]:
            self._coming.pop(stale).cancel()
        for layer_idx in self._models.under_way - set(wanted):
            self._thread.submit(self._models.forget, layer_idx)


class StreamedWeights:
    """One of the models (an engine's WeightSource). `close` ends the thread, as does the `with` statement."""

    def __init__(self, embedding: Embedding, head: HeadWeights, layers: StreamedLayers, which: int) -> None:
        self.embedding, self._head, self._layers, self._which = embedding, head, layers, which

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32."""
        return self.embedding.rows(token_ids_T)

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer's weights, as soon as they are there; the layers after it are asked for."""
        return self._layers.layer(layer_idx, self._which)

    def head(self) -> HeadWeights:
        """Final norm and LM head, which stay in memory once they are prepared."""
        return self._head

    def close(self) -> None:
        """Stop reading ahead, for all models in step, and wait for the thread to end."""
        self._layers.close()

    def __enter__(self) -> StreamedWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stream(models: ModelsInStep, read_ahead: int = READ_AHEAD) -> list[StreamedWeights]:
    """Weights of models in step, to be asked for a layer in turn. Raises ModelError."""
    layers = StreamedLayers(models, read_ahead)
    return [
        StreamedWeights(embedding, head, layers, which)
        for which, (embedding, head) in enumerate(zip(models.embeddings(), models.heads(), strict=True))
    ]


def _prepared(models: ModelsInStep, layer_idx: int, which: int, num_threads: int) -> PreparedLayer:
    """A function of its own, so that what waits to be read does not keep the source alive."""
    try:
        return models.layer(layer_idx, which, num_threads)
    except PsyfastError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: torch's, where memory is short
        raise ModelError(f"layer {layer_idx} cannot be read and prepared ({error}); use a smaller model") from error
