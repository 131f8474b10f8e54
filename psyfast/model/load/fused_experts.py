"""Experts that are stored in one tensor a layer (gpt-oss), as an expert's matrices under the names of other families.

Stored: gate_up_proj [X, D, 2F], gate and up columns in turn, and down_proj [X, F, D]: what is multiplied from the
right; and gate_up_proj_bias [X, 2F]. Read: of each expert gate_proj and up_proj [F, D] and down_proj [D, F]; and
gate_proj_bias and up_proj_bias [X, F].
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.names import expert_bias_names, expert_names, layer_prefix
from psyfast.model.load.tensors import TensorFiles, whole
from psyfast.model.traits import Traits

_MATRICES = re.compile(r"(model\.layers\.\d+\.)mlp\.experts\.(gate_up|down)_proj")
BLOCKS, GROUP = "_blocks", 32
"""Of MXFP4 (psyfast.model.load.quantised.microscaled): how codes are called, and how many of a row have one scale."""
_BIASES = re.compile(r"(model\.layers\.\d+\.)mlp\.experts\.gate_up_proj_bias")
MAX_KEPT = 8
"""Experts' blocks that are kept at most: one of each layer that is prepared at once, and what was read in part."""


def refuse_fused(files: TensorFiles, where: str) -> None:
    """ModelError where a family that is published with a matrix an expert has all in one tensor: in which order is not said."""
    fused = next((name for name in files.shapes if is_fused(name.removesuffix(".weight").removesuffix(BLOCKS))), None)
    if fused is not None:
        raise ModelError(
            f"{where}: tensor '{files.stored_name(fused)}' {list(files.shapes[fused])} holds all of a layer's experts, "
            "expected a matrix of each (mlp.experts.0.down_proj.weight …); save the model again with transformers' "
            "save_pretrained"
        )


def check_fused(stored: TensorFiles, traits: Traits, where: str, *, as_blocks: bool) -> None:
    """ModelError for a layer's tensor of all experts that is missing, misshapen or stored in another way than is said.

    as_blocks: whether `quantization_config` says MXFP4, of which some layers' tensors may be.
    """
    experts, D = traits.experts, traits.hidden_size
    assert experts is not None
    X, F = experts.num_experts, experts.intermediate_size
    wanted = {"gate_up_proj": (X, D, 2 * F), "down_proj": (X, F, D), "gate_up_proj_bias": (X, 2 * F)}
    for layer_idx in range(traits.num_layers):
        for part, shape in wanted.items():
            name = f"{layer_prefix(traits, layer_idx)}mlp.experts.{part}"
            blocks = name + BLOCKS
            if blocks in stored.shapes:
                _check_blocks(stored, name, where, as_blocks=as_blocks)
                name, shape = blocks, (X, shape[-1], -(-shape[1] // GROUP), GROUP // 2)
            if (got := stored.shapes.get(name)) is None:
                raise ModelError(f"{where}: tensor '{name}' {list(shape)} is missing; download the model again")
            if got != shape:
                raise ModelError(
                    f"{where}: tensor '{stored.stored_name(name)}' has shape {list(got)}, expected {list(shape)} from the "
                    "configuration"
                )


def _check_blocks(stored: TensorFiles, name: str, where: str, *, as_blocks: bool) -> None:
    """ModelError unless a matrix stands in the files in MXFP4 alone, and is said to."""
    if not as_blocks:
        raise ModelError(
            f"{where}: tensor '{name}{BLOCKS}' is in MXFP4, and 'quantization_config' does not say so; expected "
            '"quant_method": "mxfp4" there; download config.json again'
        )
    if name in stored.shapes:
        raise ModelError(
            f"{where}: tensor '{name}' stands beside '{name}{BLOCKS}', expected one of them; download the model again"
        )


class Part(NamedTuple):
    """Where an expert's matrix lies: every step-th column of a block, from `first` on, is one of its rows."""

    stored: str
    expert: int
    first: int
    step: int


def parts_of(stored: str, num_experts: int) -> dict[str, Part]:
    """The matrices in a fused tensor, by their names; empty where a tensor is none."""
    found = _MATRICES.fullmatch(stored)
    if found is None:
        return {}
    named = {}
    for expert in range(num_experts):
        names = expert_names(found[1], expert)
        if found[2] == "down":
            named[names["down"]] = Part(stored, expert, 0, 1)
        else:
            named |= {names[half]: Part(stored, expert, first, 2) for first, half in enumerate(("gate", "up"))}
    return named


def holds_matrices(name: str) -> bool:
    """Whether a tensor holds a projection of all experts."""
    return _MATRICES.fullmatch(name) is not None


def is_fused(name: str) -> bool:
    """Whether a tensor holds what FusedExperts takes apart."""
    return holds_matrices(name) or _BIASES.fullmatch(name) is not None


class FusedExperts:
    """Files with fused experts that `check_fused` found whole, under the interface of files that have a matrix an expert."""

    def __init__(self, files: TensorFiles) -> None:
        self._files = files
        self.files: tuple[Path, ...] = files.files
        self._parts: dict[str, Part] = {}
        self._biases: dict[str, tuple[str, int]] = {}
        shapes: dict[str, tuple[int, ...]] = dict(files.shapes)
        for stored, shape in files.shapes.items():
            if bias := _BIASES.fullmatch(stored):
                names = expert_bias_names(bias[1])
                self._biases |= {names["gate"]: (stored, 0), names["up"]: (stored, 1)}
                shapes |= dict.fromkeys((names["gate"], names["up"]), (*shape[:-1], shape[-1] // 2))
                del shapes[stored]
            if not holds_matrices(stored):
                continue
            parts = parts_of(stored, shape[0])
            self._parts |= parts
            shapes |= {name: (shape[2] // part.step, shape[1]) for name, part in parts.items()}
            del shapes[stored]
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self._kept: OrderedDict[tuple[str, int], _Block] = OrderedDict()
        self._lock = Lock()

    def stored_name(self, name: str) -> str:
        """The tensor of all experts, for a matrix of one; there or not, the router's in the families' spelling that have such."""
        if name in self._parts:
            name = self._parts[name].stored
        elif name in self._biases:
            name = self._biases[name][0]
        elif name not in self._files.shapes:
            name = name.replace(".mlp.gate.", ".mlp.router.")
        return self._files.stored_name(name)

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        if name in self._parts:
            return self._files.dtype(self._parts[name].stored)
        return self._files.dtype(self._biases[name][0] if name in self._biases else name)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self, name)

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Rows from first_row on."""
        part = self._parts.get(name)
        if name in self._biases:
            stored, first = self._biases[name]
            both = torch.empty(len(out), 2 * out.shape[1], dtype=self._files.dtype(stored))
            self._files.read_into(stored, both, first_row)
            out.copy_(both[:, first::2])
            return
        if part is None:
            self._files.read_into(name, out, first_row)
            return
        columns = slice(part.first + first_row * part.step, part.first + (first_row + len(out)) * part.step, part.step)
        out.copy_(self._block(part.stored, part.expert, len(out))[:, columns].T)

    def _block(self, stored: str, expert: int, num_columns: int) -> Tensor:
        """One expert's part of a fused tensor, as stored, to read so many of its columns. With the last of them it is let go."""
        shape = self._files.shapes[stored]
        with self._lock:
            kept = self._kept.setdefault((stored, expert), _Block(shape[2]))
            kept.columns_left -= num_columns
            if kept.columns_left <= 0:
                del self._kept[stored, expert]
            elif len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        with kept.lock:  # one thread reads it, the others wait
            if kept.values is None:
                values = torch.empty(1, *shape[1:], dtype=self._files.dtype(stored))
                self._files.read_into(stored, values, expert)
                kept.values = values[0]
            return kept.values

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows of a matrix that is no expert's."""
        assert name not in self._parts and name not in self._biases
        return self._files.gather(name, rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return self._files.stored_as()


class _Block:
    """One expert's part of a fused tensor: read once for the rows of both halves, which several threads ask for."""

    def __init__(self, num_columns: int) -> None:
        self.lock, self.columns_left = Lock(), num_columns
        self.values: Tensor | None = None


def block_bytes(traits: Traits, value_bytes: int) -> int:
    """The largest part of one expert that is kept while its layer is prepared. value_bytes: of a value as stored."""
    if traits.experts is None or not traits.experts.biases:
        return 0
    return 2 * traits.hidden_size * traits.experts.intermediate_size * value_bytes
