"""Tensor files under one interface: names as Hugging Face has them, values as stored (or de-quantised to fp32)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from psyfast.errors import ModelError

if TYPE_CHECKING:
    from gguf.constants import GGMLQuantizationType


class TensorFiles(Protocol):
    """Where a model's tensors are read from."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape by its Hugging Face name."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files themselves."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor by its Hugging Face name."""
        ...

    def stored_as(self) -> tuple[str, ...]:
        """The types that the values are stored in, the most frequent first."""
        ...


class SafetensorsFiles:
    """model.safetensors, or the shards that model.safetensors.index.json names."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.files = _safetensors_paths(folder)
        self._handles: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in self.files:
            try:
                handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path}: not a readable safetensors file ({error}); download it again") from error
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                if name in self._handles:
                    raise ModelError(f"{path}: tensor '{name}' stands in another shard, too; download the model again")
                self._handles[name] = handle
                self.shapes[name] = tuple(handle.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """The tensor as stored; fp32, fp16 and bf16 only."""
        tensor: Tensor = self._handles[name].get_tensor(name)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ModelError(f"tensor '{name}' is stored as {tensor.dtype}; supported: float32, float16, bfloat16")
        return tensor

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return by_frequency(str(handle.get_slice(name).get_dtype()) for name, handle in self._handles.items())


def by_frequency(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names, the most frequent first."""
    return tuple(name for name, _ in Counter(names).most_common())


def _safetensors_paths(folder: Path) -> tuple[Path, ...]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index}: has no readable 'weight_map'; download the file again") from error
        paths = tuple(folder / name for name in names)
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ModelError(f"{folder}: {index.name} names {', '.join(missing)}, not there; download the model again")
        return paths
    if single.is_file():
        return (single,)
    if pickles := sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pth", ".pt")):
        raise ModelError(
            f"{folder}: only pickle files ({', '.join(pickles[:3])}), which can run code and are never read; convert "
            "them with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise ModelError(f"{folder}: no model.safetensors and no model.safetensors.index.json there")


class GgufFile:
    """A GGUF file: names mapped to Hugging Face's, values de-quantised to fp32, q and k rows in the halves' order."""

    def __init__(self, path: Path) -> None:
        from psyfast.model.load.gguf_header import GgufHeader

        self._header = GgufHeader(path)
        self.files = (path,)
        self.metadata = self._header.metadata
        self._tensors = {_hf_name(tensor.name, path): tensor for tensor in self._header.tensors}
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, fp32."""
        tensor = self._tensors[name]
        try:
            values = _dequantised(self._header.stored(tensor), tensor.kind)
        except NotImplementedError as error:  # how gguf says that it has no de-quantisation for a type
            kind = tensor.kind.name
            raise ModelError(f"{self.files[0]}: tensor '{name}' is stored as {kind}, which cannot be read") from error
        weight = torch.from_numpy(values).reshape(tensor.shape)
        if _ROTATED.search(name):
            key = "head_count" if ".q_proj." in name else "head_count_kv"
            weight = unpermute(weight, int(self.metadata[f"{self.metadata['general.architecture']}.attention.{key}"]))
        return weight

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return by_frequency(tensor.kind.name for tensor in self._tensors.values())


PIECE_VALUES = 1 << 17
"""Values de-quantised at a time: what they pass through stays in a core's cache, which halves the time."""


def _dequantised(stored: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """The values of a tensor's blocks, [blocks · values of a block]."""
    from gguf.constants import GGML_QUANT_SIZES
    from gguf.quants import dequantize

    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    num_blocks, step = len(stored) // block_bytes, PIECE_VALUES // block_size
    values = np.empty(num_blocks * block_size, np.float32)
    for start in range(0, num_blocks, step):
        blocks = slice(start, min(start + step, num_blocks))
        piece = stored[blocks.start * block_bytes : blocks.stop * block_bytes]
        values[blocks.start * block_size : blocks.stop * block_size] = dequantize(piece, kind)
    return values


def unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from GGUF's order (the two of a rotary pair side by side) to Hugging Face's (the halves)."""
    head_dim = weight.shape[0] // num_heads
    pairs = weight.reshape(num_heads, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


_ROTATED = re.compile(r"\.(q|k)_proj\.(weight|bias)$")

_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}


def _hf_name(name: str, path: Path) -> str:
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _GGUF_LAYER_NAMES:
        raise ModelError(f"{path}: tensor '{name}' belongs to no layer of the plain decoder; the file cannot be loaded")
    return f"model.layers.{match[1]}.{_GGUF_LAYER_NAMES[match[2]]}.{match[3]}"
