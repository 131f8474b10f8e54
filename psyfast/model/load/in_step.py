"""The layers of models of one base: what they have in common is prepared once, whichever model asks for it first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from psyfast.model.load.assembly import Assembler, Embedding
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.names import EMBEDDING
from psyfast.model.load.shared import SharedFiles
from psyfast.ops.records import HeadWeights, PreparedLayer


@dataclass
class _UnderWay:
    """A layer that some of the models have been given and others not yet: prepared parts that they have in common."""

    ready: dict[str, Any] = field(default_factory=dict)
    given_to: set[int] = field(default_factory=set)


class ModelsInStep:
    """Models of one base under different adapters, each of which takes its layers in the same order.

    assemblers: one a model. common: what they have in common. prepare_layer: of the operators that will run the layers.
    base: their files, where there is more than one of them. From the first model that is given a layer to the last, what
    they have in common is held, and the base's values that the others still have to be merged with. A layer is to be asked for
    by one thread at a time.
    """

    def __init__(
        self,
        assemblers: Sequence[Assembler],
        common: CommonParts,
        prepare_layer: Callable[..., PreparedLayer],
        base: SharedFiles | None = None,
    ) -> None:
        assert common.num_models == len(assemblers)
        self._assemblers, self._common, self._prepare_layer, self._base = assemblers, common, prepare_layer, base
        self.num_models, self.num_layers = common.num_models, common.num_layers
        self._under_way: dict[int, _UnderWay] = {}

    def layer(self, layer_idx: int, which: int, num_threads: int) -> PreparedLayer:
        """A layer of model `which`. A part that several models have in common is the same object in all of them."""
        under_way = self._under_way.setdefault(layer_idx, _UnderWay())
        shared = self._common.shared_parts(layer_idx, which)
        ready = {part: under_way.ready[part] for part in shared if part in under_way.ready}
        prepared = self._prepare_layer(self._assemblers[which].layer(layer_idx), num_threads=num_threads, ready=ready)
        under_way.ready |= {part: getattr(prepared, part) for part in shared}
        under_way.given_to.add(which)
        if len(under_way.given_to) == self.num_models:
            self.forget(layer_idx)
        return prepared

    @property
    def under_way(self) -> frozenset[int]:
        """Layers that some of the models have been given and others not yet."""
        return frozenset(self._under_way)

    def forget(self, layer_idx: int) -> None:
        """Let go of what is held for models that have not been given a layer yet."""
        self._under_way.pop(layer_idx, None)
        if self._base is not None:
            self._base.forget(self._common.prefix(layer_idx))

    def embeddings(self) -> list[Embedding]:
        """Every model's, each matrix looked through once."""
        known: dict[int, Embedding] = {}
        owners = [self._common.owner_of(EMBEDDING, which) for which in range(len(self._assemblers))]
        for owner in owners:
            if owner not in known:
                known[owner] = self._assemblers[owner].embedding()
        return [known[owner] for owner in owners]

    def heads(self) -> list[HeadWeights]:
        """Every model's final norm and LM head, to be read."""
        return [assembler.head() for assembler in self._assemblers]
