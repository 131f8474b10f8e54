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
from psyfast.model.families import FAMILIES
from psyfast.model.load import gguf_delta, gguf_experts
from psyfast.model.load.gguf_config import decoder_layers, family_in
from psyfast.model.load.names import MIXTRAL, NORM_NAMES, NormNames, mixtral_name, plain_name
from psyfast.model.load.quantised.tensor import RawTensor
from psyfast.model.load.stored import PLAIN, StoredTensor, ValueFile, plain_tensor

if TYPE_CHECKING:
    from psyfast.model.load.gguf_header import StoredTensor as GgufTensor


class TensorFiles(Protocol):
    """Where a model's tensors are read from. All but `shapes` raise ModelError for what cannot be read."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape by its Hugging Face name."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files themselves."""
        ...

    def stored_name(self, name: str) -> str:
        """What errors call a tensor, there or not: its name in the files' spelling."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor's values are read: as stored, or fp32 where they are de-quantised."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor by its Hugging Face name."""
        ...

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Fill `out` with a tensor's rows from first_row on, converted to its type."""
        ...

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows of a matrix in any order, in the type of `dtype`."""
        ...

    def stored_as(self) -> tuple[str, ...]:
        """The types that the values are stored in, the most frequent first."""
        ...


class SafetensorsFiles:
    """STEM.safetensors, or the shards that STEM.safetensors.index.json names; names as a model of text alone has them."""

    def __init__(self, folder: Path, stem: str = "model") -> None:
        self.files = _safetensors_paths(folder, stem)
        self._headers: dict[
            str, tuple[ValueFile, Mapping[str, Any], int]
        ] = {}  # file, entry, start of the file's values
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._stored_names: dict[str, str] = {}
        for path in self.files:
            file, header, first = _safetensors_header(path)
            for stored_name, entry in header.items():
                name = plain_name(stored_name)
                if name in self._headers:
                    raise ModelError(f"{path}: tensor '{stored_name}' stands there twice; download the model again")
                self._headers[name] = (file, entry, first)
                self.shapes[name] = tuple(entry["shape"])
                self._stored_names[name] = stored_name
        self._as_mixtral = any(MIXTRAL in name for name in self._stored_names.values())

    def stored_name(self, name: str) -> str:
        """As the file has it, or would have it."""
        return self._stored_names.get(name, mixtral_name(name) if self._as_mixtral else name)

    def dtype(self, name: str) -> torch.dtype:
        """The stored type; fp32, fp16 and bf16 only."""
        return self._stored(name).dtype

    def read(self, name: str) -> Tensor:
        """The tensor as stored."""
        return whole(self, name)

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Rows from first_row on."""
        self._stored(name).read_into(out, first_row)

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows."""
        return self._stored(name).gather(rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return by_frequency(str(entry["dtype"]) for _, entry, _ in self._headers.values())

    def raw(self, name: str) -> RawTensor:
        """Where a tensor's bytes lie, of whatever type."""
        file, entry, first = self._headers[name]
        start, stop = entry["data_offsets"]
        return RawTensor(self.stored_name(name), file, first + start, self.shapes[name], entry["dtype"], stop - start)

    def _stored(self, name: str) -> StoredTensor:
        file, entry, first = self._headers[name]
        kind, shape, stored_name = entry["dtype"], self.shapes[name], self.stored_name(name)
        if kind not in PLAIN:
            raise ModelError(f"{file.path}: tensor '{stored_name}' is stored as {kind}; supported: {', '.join(PLAIN)}")
        start, stop = entry["data_offsets"]
        rows = shape[0] if len(shape) > 1 else 1
        return plain_tensor(stored_name, file, first + start, shape, kind, (stop - start) // max(1, rows))


def whole(files: TensorFiles, name: str) -> Tensor:
    """All of a tensor."""
    out = torch.empty(files.shapes[name], dtype=files.dtype(name))
    files.read_into(name, out)
    return out


def _safetensors_header(path: Path) -> tuple[ValueFile, dict[str, Any], int]:
    """A file, its tensors' entries (dtype, shape, data_offsets), and the byte that offsets count from."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # the library checks the whole header against the file
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file ({error}); download it again") from error
    file = ValueFile(path)
    size = np.empty(8, np.uint8)
    file.read_into(size, 0)
    text = np.empty(int(size.view("<u8")[0]), np.uint8)
    file.read_into(text, len(size))
    header: dict[str, Any] = json.loads(text.tobytes())
    header.pop("__metadata__", None)
    return file, header, len(size) + len(text)


def by_frequency(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct names, the most frequent first."""
    return tuple(name for name, _ in Counter(names).most_common())


def _safetensors_paths(folder: Path, stem: str) -> tuple[Path, ...]:
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            paths = tuple(folder / name for name in names)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ModelError(f"{index}: has no readable 'weight_map'; download the file again") from error
        if missing := [path.name for path in paths if not path.is_file()]:
            raise ModelError(f"{folder}: {index.name} names {', '.join(missing)}, not there; download the model again")
        return paths
    if single.is_file():
        return (single,)
    if pickles := sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pth", ".pt")):
        library = (
            "peft: AutoPeftModelForCausalLM" if stem.startswith("adapter") else "transformers: AutoModelForCausalLM"
        )
        raise ModelError(
            f"{folder}: only pickle files ({', '.join(pickles[:3])}), which can run code and are never read; convert "
            f"them with {library}.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise ModelError(f"{folder}: no {single.name} and no {index.name} there")


class GgufFile:
    """A GGUF file: names mapped to Hugging Face's, values de-quantised to fp32, q and k rows in the halves' order.

    Of some architectures the two of a rotary pair stand side by side in the file (Family.gguf_pairs).
    """

    def __init__(self, path: Path) -> None:
        from psyfast.model.load.gguf_header import GgufHeader

        header = GgufHeader(path)
        self.files = (path,)
        self.metadata = header.metadata
        architecture = self.metadata.get("general.architecture")
        family = family_in(self.metadata) or FAMILIES[0]
        self._pairs, norms = family.gguf_pairs, NORM_NAMES[family.norms]
        self._delta = gguf_delta.TiledHeads.of(self.metadata, str(architecture)) if family.delta else None
        if family.delta or family.sinks:  # what stands between attention and MLP is called by its place there
            norms = norms._replace(attn_out=norms.mlp_in, mlp_in=None)
        num_layers = decoder_layers(self.metadata, str(path))
        self._tensors: dict[str, GgufTensor] = {}
        for tensor in header.tensors:
            if num_layers is None or _block_of(tensor.name) < num_layers:
                experts = dict(gguf_experts.split(tensor, path))
                self._tensors |= experts or {_hf_name(tensor.name, norms, path): tensor}
        self.shapes = {
            name: (tensor.shape[0], 1, *tensor.shape[1:]) if name.endswith("conv1d.weight") else tensor.shape
            for name, tensor in self._tensors.items()
        }
        self._file = ValueFile(path)

    def stored_name(self, name: str) -> str:
        """Its Hugging Face name."""
        return name

    def dtype(self, name: str) -> torch.dtype:
        """Fp32, fp16 and bf16 as stored, fp32 for everything else."""
        return self._stored(name).dtype

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return whole(self, name)

    def read_into(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Rows from first_row on, in Hugging Face's order."""
        stored, head_dim = self._stored(name), self._rotated_head_dim(name)
        if self._delta is not None and self._delta.read_into(stored, name, out, first_row):
            return
        if head_dim is None:
            stored.read_into(out, first_row)
            return
        stop = first_row + len(out)
        first, last = first_row // head_dim * head_dim, -(-stop // head_dim) * head_dim
        heads = torch.empty(last - first, *out.shape[1:], dtype=out.dtype)
        stored.read_into(heads, first)
        out.copy_(unpermute(heads, (last - first) // head_dim)[first_row - first : stop - first])

    def gather(self, name: str, rows_N: Tensor) -> Tensor:
        """Some rows of a matrix whose rows stand in Hugging Face's order."""
        assert self._rotated_head_dim(name) is None
        return self._stored(name).gather(rows_N)

    def stored_as(self) -> tuple[str, ...]:
        """The stored types, the most frequent first."""
        return by_frequency(tensor.kind.name for tensor in self._tensors.values())

    def _stored(self, name: str) -> StoredTensor:
        tensor = self._tensors[name]
        kind, rows = tensor.kind, tensor.shape[0] if len(tensor.shape) > 1 else 1
        row_bytes = tensor.num_bytes // max(1, rows)
        if kind.name in PLAIN:
            return plain_tensor(name, self._file, tensor.start, tensor.shape, kind.name, row_bytes)
        from gguf.quants import dequantize

        def values_of(stored: NDArray[np.uint8]) -> Tensor:
            try:
                return torch.from_numpy(dequantize(stored, kind))
            # The gguf package's way to say that it has no de-quantisation for a type; it has no error of its own.
            except NotImplementedError as error:
                where = f"{self.files[0]}: tensor '{name}'"
                raise ModelError(f"{where} is stored as {kind.name}, which cannot be read") from error

        return StoredTensor(
            name, self._file, tensor.start, tensor.shape, kind.name, torch.float32, row_bytes, values_of
        )

    def _rotated_head_dim(self, name: str) -> int | None:
        """Rows of a head, where the tensor's heads stand in GGUF's order."""
        if not self._pairs or not _ROTATED.search(name):
            return None
        key = "head_count" if ".q_proj." in name else "head_count_kv"
        num_heads = int(self.metadata[f"{self.metadata['general.architecture']}.attention.{key}"])
        return self.shapes[name][0] // num_heads


def unpermute(weight: Tensor, num_heads: int) -> Tensor:
    """Rows of each head from GGUF's order (the two of a rotary pair side by side) to Hugging Face's (the halves)."""
    head_dim = weight.shape[0] // num_heads
    pairs = weight.reshape(num_heads, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


_ROTATED = re.compile(r"\.(q|k)_proj\.(weight|bias)$")

_GGUF_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
"""In the order of NormNames."""
_GGUF_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    **gguf_delta.LAYER_NAMES,
    **gguf_experts.LAYER_NAMES,
}
_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}


def _block_of(name: str) -> int:
    """The layer that a tensor belongs to; −1: none."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _hf_name(name: str, norms: NormNames, path: Path) -> str:
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    if of_experts := gguf_experts.vector_name(name):
        return of_experts
    if vector := re.fullmatch(r"blk\.(\d+)\.(ssm_a|ssm_dt\.bias)", name):
        return f"model.layers.{vector[1]}.{gguf_delta.VECTOR_NAMES[vector[2]]}"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    ours = match and (dict(zip(_GGUF_NORMS, norms, strict=True)).get(match[2]) or _GGUF_LAYER_NAMES.get(match[2]))
    if match is None or ours is None:
        raise ModelError(f"{path}: tensor '{name}' belongs to no layer of the plain decoder; the file cannot be loaded")
    return f"model.layers.{match[1]}.{ours}.{match[3]}"
