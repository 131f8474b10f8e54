"""GGUF files for tests, written by the gguf package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psyfast.model.families import FAMILIES
from psyfast.model.load.checks import expected_shapes
from psyfast.model.load.locate import locate
from psyfast.model.load.model import open_model
from psyfast.model.traits import DeltaTraits, Traits


def write_vocabulary(
    path: Path,
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    architecture: str = "llama",
    pre: str | None = "gpt-2",
    types: Sequence[int] | None = None,
    **said: Any,
) -> Path:
    """A model without weights. said: more of the tokenizer's keys, as GGUFWriter's `add_…` methods name them."""
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(8)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types or [1] * len(tokens))
    writer.add_token_merges(merges)
    for name, value in said.items():
        getattr(writer, f"add_{name}")(value)
    _finish(writer)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Any], *, strings: Mapping[str, list[str]] | None = None) -> Path:
    """Tensors as arrays, or as (bytes of blocks, type), beside one pair of metadata of every kind."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    for nth, kind in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")):
        getattr(writer, f"add_{kind}")(f"number.{kind}", 100 + nth)
    writer.add_float32("number.float32", 0.5)
    writer.add_float64("number.float64", 1e-300)
    writer.add_bool("number.bool", True)
    writer.add_array("numbers", [1, -2, 3])
    writer.add_string("text", "é🙂")
    for key, values in (strings or {"words": ["", "a", "日本"]}).items():
        writer.add_array(key, values)
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    _finish(writer)
    return path


def write_model(
    path: Path, folder: Path, traits: Traits, *, kind: str = "F32", num_ahead: int = 0, **said: Any
) -> None:
    """A Hugging Face folder's model as llama.cpp stores its architecture; matrices as F32, or as Q8_0 or Q4_0, experts' too.

    num_ahead: layers behind the last that predict tokens further on.

    said: more of its keys, as GGUFWriter's `add_…` methods name them.
    """
    import gguf

    family = next(family for family in FAMILIES if family.architecture == traits.family)
    _, files = open_model(locate(str(folder)))
    writer = gguf.GGUFWriter(str(path), family.gguf_architecture)
    writer.add_block_count(traits.num_layers + num_ahead)
    if num_ahead:
        writer.add_nextn_predict_layers(num_ahead)
        writer.add_tensor(f"blk.{traits.num_layers}.nextn.eh_proj.weight", np.ones((2, 3), np.float32))
    writer.add_context_length(traits.max_positions)
    writer.add_embedding_length(traits.hidden_size)
    writer.add_feed_forward_length(traits.intermediate_size)
    writer.add_head_count(traits.num_heads)
    writer.add_head_count_kv(traits.num_kv_heads)
    writer.add_key_length(traits.head_dim)
    writer.add_layer_norm_rms_eps(traits.norm_eps)
    writer.add_rope_freq_base(traits.rope.base)
    for name, value in said.items():
        getattr(writer, f"add_{name}")(value)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf_architecture)
    names = gguf.get_tensor_name_map(architecture, traits.num_layers)
    together: dict[str, list[np.ndarray]] = {}  # experts' matrices of one kind
    for name in expected_shapes(traits):
        value = files.read(name).float()
        if family.gguf_pairs and ("q_proj" in name or "k_proj" in name):  # the two of a rotary pair side by side
            heads = traits.num_heads if "q_proj" in name else traits.num_kv_heads
            value = value.reshape(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
        if traits.unit_offset and "norm" in name and "linear_attn" not in name:
            value = value + 1
        if traits.delta is not None and "linear_attn" in name:
            value = _tiled(value, name, traits.delta)
        array = value.contiguous().numpy()
        if vector := re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\w+)_proj_bias", name):
            writer.add_tensor(f"blk.{vector[1]}.ffn_{vector[2]}_exps.bias", array)
            continue
        if name.endswith(".sinks"):
            writer.add_tensor(names.get_name(name) + ".weight", array)
            continue
        if ".experts." in name:
            together.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(array)
            continue
        theirs = names.get_name(name.replace("dt_bias", "dt_proj.bias"), try_suffixes=(".weight", ".bias"))
        _add(writer, theirs, array, kind if array.ndim == 2 else "F32")
    for name, arrays in together.items():
        _add(writer, names.get_name(name, try_suffixes=(".weight",)), np.stack(arrays), kind)
    _finish(writer)


def _add(writer: Any, name: str, array: np.ndarray, kind: str) -> None:
    import gguf

    if kind == "F32":
        writer.add_tensor(name, array)
        return
    quantised = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(array, quantised), raw_dtype=quantised)


def _tiled(value: torch.Tensor, name: str, delta: DeltaTraits) -> torch.Tensor:
    """A delta-net's tensor with its value heads in llama.cpp's order: the first of every key head, then the second …"""
    part = name.split("linear_attn.")[1].removesuffix(".weight")
    K, H, V = delta.num_key_heads, delta.num_value_heads, delta.value_dim

    def tiled(rows: torch.Tensor, size: int) -> torch.Tensor:
        return rows.reshape(K, H // K, size, -1).transpose(0, 1).reshape(rows.shape)

    if part == "conv1d":
        value = value[:, 0]
    if part in ("in_proj_qkv", "conv1d"):
        of_keys = 2 * K * delta.key_dim
        return torch.cat([value[:of_keys], tiled(value[of_keys:], V)])
    if part == "out_proj":
        return tiled(value.T.contiguous(), V).T
    if part == "norm":
        return value
    value = -value.exp() if part == "A_log" else value
    return tiled(value, V if part == "in_proj_z" else 1)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
