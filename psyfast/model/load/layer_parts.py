"""Which parts of a layer models of one base have in common: those of which none of them changes a tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from psyfast.model.load.names import EMBEDDING, FINAL_NORM, HEAD, NORM_NAMES, layer_prefix
from psyfast.model.traits import Traits

PARTS = ("attn_in", "attn_out", "mlp", "experts", "delta_rule")
"""Of a layer's weights, by their field of `LayerWeights`; any other field is every model's own."""
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")
_OUTSIDE = (EMBEDDING, HEAD, FINAL_NORM + ".weight")


def parts_of(tensor: str, traits: Traits) -> Collection[str]:
    """The parts that read a tensor, by its name inside its layer; all of them where it is not known."""
    norms, gated = NORM_NAMES[traits.norms], traits.output_gate or traits.delta is not None
    module = tensor.rpartition(".")[0]
    if module == norms.attn_in:  # the gate of an output has the same norm
        return ("attn_in", "delta_rule", "attn_out") if gated else ("attn_in", "delta_rule")
    if module == "self_attn.q_proj" and traits.output_gate:  # the gate's rows stand among the queries'
        return ("attn_in", "attn_out")
    if tensor == "self_attn.sinks":  # attention's parameters are no part, and every model's own
        return ()
    if re.fullmatch(r"self_attn\.([qkv]|qkv)_proj|self_attn\.[qk]_norm", module):
        return ("attn_in",)
    if module in ("self_attn.o_proj", "linear_attn.out_proj", "linear_attn.in_proj_z", norms.attn_out):
        return ("attn_out",)
    if module.startswith("mlp.") or module in (norms.mlp_in, norms.mlp_out):
        return ("mlp", "experts")  # whichever the layer has
    return ("delta_rule",) if module.startswith("linear_attn") else PARTS


class CommonParts:
    """What models of one base have in common, layer by layer. changed: the names of the tensors that each of them changes."""

    def __init__(self, changed: Sequence[Collection[str]], traits: Traits) -> None:
        self.num_models, self.num_layers = len(changed), traits.num_layers
        self._traits, self._changed = traits, changed
        self._own = [_changed_parts(names, traits) for names in changed]

    def prefix(self, layer_idx: int) -> str:
        """What the names of a layer's tensors begin with."""
        return layer_prefix(self._traits, layer_idx)

    def shared_parts(self, layer_idx: int, which: int) -> Collection[str]:
        """The parts of a layer that model `which` has in common with others: none of them changes it."""
        layer = self.prefix(layer_idx)
        return [
            part for part in PARTS if self._num_unchanged(layer, part) > 1 and not self._changes(which, layer, part)
        ]

    def owner_of(self, name: str, which: int) -> int:
        """Of a tensor outside the layers: the first of the models that has it as model `which` has it."""
        if name in self._changed[which]:
            return which
        return next(model for model, names in enumerate(self._changed) if name not in names)

    def copies(self, layer_idx: int) -> Mapping[str, int]:
        """By part: how many of it there are, all models' together."""
        return self._copies(self.prefix(layer_idx))

    def read_again(self, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """Of a base's tensors the layers' matrices that are read for more than one copy of a part."""
        return frozenset(name for name, shape in shapes.items() if len(shape) == 2 and self._is_read_again(name))

    def _is_read_again(self, name: str) -> bool:
        found = _LAYER.fullmatch(name)
        if found is None:
            return False
        copies = self._copies(found[1])
        return any(copies[part] > 1 for part in parts_of(found[2], self._traits))

    def _copies(self, layer: str) -> Mapping[str, int]:
        unchanged = {part: self._num_unchanged(layer, part) for part in PARTS}
        return {part: self.num_models - count + min(count, 1) for part, count in unchanged.items()}

    def _num_unchanged(self, layer: str, part: str) -> int:
        return sum(not self._changes(which, layer, part) for which in range(self.num_models))

    def _changes(self, which: int, layer: str, part: str) -> bool:
        return part in self._own[which].get(layer, ())


def _changed_parts(names: Iterable[str], traits: Traits) -> Mapping[str, set[str]]:
    """By layer (as its tensors' names begin): the parts that read one of these tensors."""
    parts: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        if name in _OUTSIDE:
            continue
        found = _LAYER.fullmatch(name)
        if found is None:  # nobody knows what reads it
            parts.update({layer_prefix(traits, layer_idx): set(PARTS) for layer_idx in range(traits.num_layers)})
        else:
            parts[found[1]].update(parts_of(found[2], traits))
    return dict(parts)
