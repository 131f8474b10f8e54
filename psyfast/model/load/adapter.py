"""PEFT LoRA adapters, merged into a model's matrices in fp32 as they are read (Hu et al. 2022).

W' = W + scale · B A        scale = alpha / rank, or alpha / sqrt(rank) where the adapter is rank-stabilised
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.config_values import flag_at, object_at
from psyfast.model.load.locate import ADAPTER_CONFIG
from psyfast.model.load.names import EMBEDDING, FINAL_NORM, HEAD, plain_name
from psyfast.model.load.stored import require_finite
from psyfast.model.load.tensors import SafetensorsFiles, TensorFiles, whole

WEIGHTS = "adapter_model"
MERGED_VALUES = 1 << 18
"""That are summed at a time: 1 MB in fp32, which stays in a core's cache, and in memory that the allocator has."""
_GREATEST = torch.finfo(torch.float32).max

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "bias": ("none",),
    "layer_replication": (),
    "target_parameters": ([],),
    "trainable_token_indices": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "kasa_config": (),
}
"""Options that change what an adapter computes, with the values (besides none) that do not."""

_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?")
"""A module's name and which of its factors it is."""

_CHANGES_THE_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga")
"""Initialisations that subtract from the base what they start the adapter with; the base as published is another model."""


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix: scale · up_OR down_RI. path: where it stands, for errors."""

    down_RI: Tensor
    up_OR: Tensor
    scale: float
    path: Path

    def add_to(self, values: Tensor, start: int) -> None:
        """Adds rows from `start` on to `values`, fp32."""
        values.addmm_(self.up_OR[start : start + len(values)], self.down_RI, alpha=self.scale)


@dataclass(frozen=True)
class Adapter:
    """An adapter, read: what it adds to matrices, and the tensors that it brings in place of the model's own."""

    path: Path
    files: tuple[Path, ...]
    low_rank: Mapping[str, LowRank]
    replaced: Mapping[str, Tensor]


def read_adapter(folder: Path) -> Adapter:
    """An adapter's folder: adapter_config.json and adapter_model.safetensors. Raises ModelError for what cannot be merged."""
    config = _config(folder)
    files = SafetensorsFiles(folder, WEIGHTS)
    low_rank, replaced, halves = {}, {}, set()
    for stored in files.shapes:
        name = plain_name(stored.removeprefix("base_model.model."))
        found = _FACTOR.fullmatch(name)
        if found is None:
            replaced[_saved_whole(name)] = whole(files, stored)
            continue
        module, is_embedding = found[1], found[2] is not None
        if module in halves:
            continue
        halves.add(module)
        a, b = (_half(files, stored, found[3], half, folder) for half in "AB")
        down, up = (b.T, a.T) if is_embedding else (a, b)  # an embedding's rows are its inputs
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"{folder}: '{module}' has LoRA factors of {list(a.shape)} and {list(b.shape)}, expected [r, in] and [out, r]"
            )
        # an adapter's patterns name modules as its files do, which Mixtral's do in a spelling of their own
        said = files.stored_name(stored).partition(".lora_")[0].removeprefix("base_model.model.")
        scale = _scale(config, said, a.shape[0], folder)
        low_rank[module + ".weight"] = LowRank(down.contiguous(), up.contiguous(), scale, folder)
    if not low_rank and not replaced:
        raise ModelError(f"{folder}: {WEIGHTS}.safetensors holds no tensor; train the adapter, or save it again")
    return Adapter(folder, files.files, low_rank, replaced)


def changed_by(folder: Path) -> frozenset[str]:
    """The model's tensors that an adapter changes, by the names of its own alone."""
    names = (plain_name(name.removeprefix("base_model.model.")) for name in SafetensorsFiles(folder, WEIGHTS).shapes)
    return frozenset(
        found[1] + ".weight" if (found := _FACTOR.fullmatch(name)) else _saved_whole(name) for name in names
    )


def brings_a_head(folder: Path) -> bool:
    """Whether an adapter changes the final norm or the LM head."""
    return any(name.startswith(("lm_head.", FINAL_NORM + ".")) for name in changed_by(folder))


def _saved_whole(name: str) -> str:
    """The model's tensor that stands in an adapter under this name."""
    return re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: cannot be read as JSON ({error}); an adapter's folder holds {ADAPTER_CONFIG}"
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"{folder}: adapters of type {kind} cannot be merged; supported: LORA")
    for key, neutral in _NEUTRAL.items():
        if config.get(key) is not None and config[key] not in neutral:
            raise ModelError(f"{folder}: LoRA with {key} = {config[key]} is not supported; merge it with peft first")
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and _CHANGES_THE_BASE.match(initial):
        raise ModelError(
            f"{folder}: init_lora_weights = {initial} changes the base model as well; save the adapter with peft's "
            "path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it"
        )
    return dict(config)


def _half(files: SafetensorsFiles, stored: str, this: str, wanted: str, folder: Path) -> Tensor:
    """The factor A or B of the module that a tensor of either belongs to, fp32."""
    before, _, after = stored.rpartition(f"_{this}")
    name = f"{before}_{wanted}{after}"
    if name not in files.shapes:
        raise ModelError(f"{folder}: tensor '{name}' is missing, the other half of '{stored}'; save the adapter again")
    return whole(files, name).float()


def _scale(config: Mapping[str, Any], module: str, rank: int, folder: Path) -> float:
    """Of a module, which may have an alpha of its own; its rank is that of its factors."""
    alpha, where = config.get("lora_alpha"), str(folder)
    for pattern, value in object_at(config, "alpha_pattern", where).items():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except re.error as error:
            raise ModelError(f"{folder}: '{pattern}' in 'alpha_pattern' is no regular expression ({error})") from error
        if found:
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= _GREATEST:
        raise ModelError(f"{folder}: lora_alpha is {alpha!r}, expected a number that fp32 can hold")
    if rank == 0:
        raise ModelError(
            f"{folder}: '{module}' has LoRA factors of rank 0, expected at least 1; train the adapter again"
        )
    return float(alpha) / (math.sqrt(rank) if flag_at(config, "use_rslora", where) else rank)


class AdaptedFiles:
    """A model's tensors with an adapter merged: W + scale · B A, computed in fp32 a few rows at a time.

    Raises ModelError where the adapter's tensors are not the model's.
    """

    def __init__(self, base: TensorFiles, adapter: Adapter, *, tied_head: bool) -> None:
        self._base, self._adapter = base, adapter
        self.shapes = dict(base.shapes)
        self.files = (*base.files, *adapter.files)
        if tied_head and {EMBEDDING, HEAD} & (adapter.low_rank.keys() | adapter.replaced.keys()):
            raise ModelError(
                f"{adapter.path}: changes the embedding or the head of a model that has one matrix for both; merge it with peft first"
            )
        for name, part in adapter.low_rank.items():
            self._require(name, (part.up_OR.shape[0], part.down_RI.shape[1]))
        for name, values in adapter.replaced.items():
            self._require(name, tuple(values.shape))

    def _require(self, name: str, shape: tuple[int, ...]) -> None:
        if self.shapes.get(name) != shape:
            have = "has none" if name not in self.shapes else f"has {list(self.shapes[name])}"
            raise ModelError(
                f"{self._adapter.path}: is for a tensor '{name}' {list(shape)}, and the model {have}; the adapter is another model's"
            )

    def stored_name(self, name: str) -> str:
        """The base's."""
        return self._base.stored_name(name)

    def dtype(self, name: str) -> torch.dtype:
        """Fp32 where something is added; else as stored."""
        if name in self._adapter.low_rank:
            return torch.float32
        return self._adapter.replaced[name].dtype if name in self._adapter.replaced else self._base.dtype(name)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self, name)

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Rows from first_row on."""
        part = self._adapter.low_rank.get(name)
        if part is None:
            self._read_base(name, out, first_row)
            return
        step = max(1, MERGED_VALUES // out.shape[1])
        for begin in range(0, len(out), step):
            piece = out[begin : begin + step]
            start = first_row + begin
            values = torch.empty(piece.shape)
            self._read_base(name, values, start)
            part.add_to(values, start)
            piece.copy_(values)
            require_finite(piece, name, part.path)

    def _read_base(self, name: str, out: Tensor, first_row: int) -> None:
        if name in self._adapter.replaced:
            out.copy_(self._adapter.replaced[name][first_row : first_row + len(out)])
            require_finite(out, name, self._adapter.path)
        else:
            self._base.read_into(name, out, first_row)

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows."""
        replaced, part = self._adapter.replaced.get(name), self._adapter.low_rank.get(name)
        values = self._base.gather(name, rows_N) if replaced is None else replaced[rows_N]
        return values if part is None else values.float() + (part.up_OR[rows_N] @ part.down_RI) * part.scale

    def stored_as(self) -> tuple[str, ...]:
        """The base's types."""
        return self._base.stored_as()
