"""A Hugging Face folder as a GGUF file with the same bf16 weights, for llama.cpp. It holds no vocabulary: ids go in."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from psyfast.model.load.checks import expected_shapes
from psyfast.model.load.locate import locate
from psyfast.model.load.model import open_model
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.traits import Traits

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, work: Path) -> Path:
    """The GGUF file of a folder, written under `work` where it is not there yet."""
    path = work / f"{folder.name}.gguf"
    if path.is_file():
        return path
    traits, files = open_model(locate(str(folder)))
    if traits.rope.kind != "default" or traits.qkv_bias:
        raise SystemExit(f"{folder}: llama.cpp's file is written for plain rotary embeddings and no biases only")
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "llama")
    _add_metadata(writer, traits)
    for name in expected_shapes(traits):
        _add_tensor(writer, name, files, traits)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def _add_metadata(writer: gguf.GGUFWriter, traits: Traits) -> None:
    writer.add_context_length(traits.max_positions)
    writer.add_embedding_length(traits.hidden_size)
    writer.add_block_count(traits.num_layers)
    writer.add_feed_forward_length(traits.intermediate_size)
    writer.add_head_count(traits.num_heads)
    writer.add_head_count_kv(traits.num_kv_heads)
    writer.add_key_length(traits.head_dim)
    writer.add_value_length(traits.head_dim)
    writer.add_rope_dimension_count(traits.head_dim)
    writer.add_rope_freq_base(traits.rope.base)
    writer.add_layer_norm_rms_eps(traits.norm_eps)
    writer.add_vocab_size(traits.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_tensor(writer: gguf.GGUFWriter, name: str, files: TensorFiles, traits: Traits) -> None:
    """Matrices in bf16, bit by bit; norms in fp32, as llama.cpp wants them."""
    tensor = files.read(name)
    if ".q_proj." in name or ".k_proj." in name:
        tensor = permute(tensor, traits.num_heads if ".q_proj." in name else traits.num_kv_heads)
    if tensor.dim() == 1:
        writer.add_tensor(_gguf_name(name), tensor.float().numpy())
    else:
        bits = tensor.bfloat16().contiguous().view(torch.int16).numpy().view(np.uint8)
        writer.add_tensor(_gguf_name(name), bits, raw_dtype=gguf.GGMLQuantizationType.BF16)


def permute(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head from Hugging Face's order (the halves) to GGUF's (the two of a rotary pair side by side)."""
    head_dim = weight.shape[0] // num_heads
    halves = weight.reshape(num_heads, 2, head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    _, _, layer_idx, part = stem.split(".", 3)
    return f"blk.{layer_idx}.{_LAYER_NAMES[part]}.{kind}"
