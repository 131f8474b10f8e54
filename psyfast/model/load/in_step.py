"""The layers of models of one base, prepared for all of them at once: what they have in common is prepared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from psyfast.model.load.assembly import Assembler, Embedding
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.names import EMBEDDING
from psyfast.model.load.shared import SharedFiles
from psyfast.ops.records import HeadWeights, PreparedLayer


class ModelsInStep:
    """Models of one base under different adapters, whose layers are prepared together.

    assemblers: one a model. common: what they have in common. prepare_layer: of the operators that will run the layers.
    base: their files, where there is more than one of them.
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
        self.num_layers = common.num_layers

    def layers(self, layer_idx: int, num_threads: int) -> list[PreparedLayer]:
        """One layer of every model. A part that several have in common is the same object in all of them."""
        prepared: list[PreparedLayer] = []
        try:
            for which, assembler in enumerate(self._assemblers):
                owners = self._common.owners(layer_idx, which)
                ready = {part: getattr(prepared[owner], part) for part, owner in owners.items() if owner < which}
                prepared.append(self._prepare_layer(assembler.layer(layer_idx), num_threads=num_threads, ready=ready))
        finally:
            if self._base is not None:
                self._base.forget(self._common.prefix(layer_idx))
        return prepared

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
