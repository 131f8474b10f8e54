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
from psyfast.model.load.names import expert_bias_names, expert_names
from psyfast.model.load.tensors import TensorFiles, whole

_MATRICES = re.compile(r"(model\.layers\.\d+\.)mlp\.experts\.(gate_up|down)_proj")
_BIASES = re.compile(r"(model\.layers\.\d+\.)mlp\.experts\.gate_up_proj_bias")
MAX_KEPT = 4
"""Experts' blocks that are kept: both halves are made of one, and several threads read."""


def refuse_fused(files: TensorFiles, where: str) -> None:
    """ModelError where a family that is published with a matrix an expert has all in one tensor: in which order is not said."""
    fused = next((name for name in files.shapes if is_fused(name.removesuffix(".weight"))), None)
    if fused is not None:
        raise ModelError(
            f"{where}: tensor '{files.stored_name(fused)}' {list(files.shapes[fused])} holds all of a layer's experts, "
            "expected a matrix of each (mlp.experts.0.down_proj.weight …); save the model again with transformers' "
            "save_pretrained"
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


def is_fused(name: str) -> bool:
    """Whether a tensor holds what FusedExperts takes apart."""
    return _MATRICES.fullmatch(name) is not None or _BIASES.fullmatch(name) is not None


class FusedExperts:
    """Files with fused experts, under the interface of files that have a matrix an expert."""

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
            if not _MATRICES.fullmatch(stored):
                continue
            if len(shape) != 3 or (".gate_up_proj" in stored and shape[2] % 2):
                raise ModelError(
                    f"{files.files[0].parent}: tensor '{stored}' has shape {list(shape)}, expected [experts, rows, columns] "
                    "with a gate and an up column in turn; download the model again"
                )
            parts = parts_of(stored, shape[0])
            self._parts |= parts
            shapes |= {name: (shape[2] // part.step, shape[1]) for name, part in parts.items()}
            del shapes[stored]
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self._kept: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._lock = Lock()

    def stored_name(self, name: str) -> str:
        """The tensor of all experts, for a matrix of one."""
        return self._files.stored_name(self._parts[name].stored if name in self._parts else name)

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
        out.copy_(self._block(part.stored, part.expert)[:, columns].T)

    def _block(self, stored: str, expert: int) -> Tensor:
        """One expert's part of a fused tensor, as stored."""
        key = stored, expert
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        block = torch.empty(1, *self._files.shapes[stored][1:], dtype=self._files.dtype(stored))
        self._files.read_into(stored, block, expert)
        with self._lock:
            self._kept[key] = block[0]
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return block[0]

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows of a matrix that is no expert's."""
        assert name not in self._parts and name not in self._biases
        return self._files.gather(name, rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return self._files.stored_as()
