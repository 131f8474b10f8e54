"""Tensor files under one interface: names as Hugging Face has them, values as stored (or de-quantised to fp32)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from psyfast.errors import ModelError


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
        reader = _gguf_reader(path)
        self.files = (path,)
        self.metadata = gguf_metadata(reader)
        self._tensors = {_hf_name(tensor.name, path): tensor for tensor in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, fp32."""
        from gguf import quants

        tensor = self._tensors[name]
        try:
            values = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:  # how gguf says that it has no de-quantisation for a type
            kind = tensor.tensor_type.name
            raise ModelError(f"{self.files[0]}: tensor '{name}' is stored as {kind}, which cannot be read") from error
        weight = torch.tensor(values, dtype=torch.float32).reshape(self.shapes[name])
        if _ROTATED.search(name):
            key = "head_count" if ".q_proj." in name else "head_count_kv"
            weight = unpermute(weight, int(self.metadata[f"{self.metadata['general.architecture']}.attention.{key}"]))
        return weight

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return by_frequency(tensor.tensor_type.name for tensor in self._tensors.values())


def _gguf_reader(path: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(str(path))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{path}: not a readable GGUF file ({error}); download it again") from error


def gguf_metadata(reader: Any) -> dict[str, Any]:
    """What a GGUF file says of its model (not of its vocabulary): plain values by key."""
    ours = (key for key in reader.fields if not key.startswith(("tokenizer.", "GGUF.")))
    return {key: reader.fields[key].contents() for key in ours}


def gguf_context_length(path: Path) -> int | None:
    """The positions that a GGUF file's model was made for, whatever its architecture."""
    metadata = gguf_metadata(_gguf_reader(path))
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return None if length is None else int(length)


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
