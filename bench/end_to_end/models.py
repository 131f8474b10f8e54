"""The same bf16 weights for every contender: a Hugging Face folder, written once, and a GGUF file made from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from psyfast.model.load.checks import expected_shapes
from psyfast.model.load.config_file import read_config
from psyfast.model.load.locate import Located, locate
from psyfast.model.load.model import open_model
from psyfast.model.traits import DeltaTraits, ExpertTraits, LayerKind, RopeTraits, Traits

_QWEN_ROPE = RopeTraits(base=1e7, rotated_share=0.25)
_OLMOE_ROPE = RopeTraits(base=1e4)
SHAPES = {
    "qwen3-0.6b": Traits(
        family="LlamaForCausalLM",
        num_layers=28,
        hidden_size=1024,
        intermediate_size=3072,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        max_positions=40_960,
        norm_eps=1e-6,
        rope=RopeTraits(base=1e6),
        tied_head=True,
    ),
    "qwen3.5-0.8b": Traits(
        family="Qwen3_5ForCausalLM",
        num_layers=24,
        hidden_size=1024,
        intermediate_size=3584,
        num_heads=8,
        num_kv_heads=2,
        head_dim=256,
        vocab_size=248_320,
        max_positions=262_144,
        norm_eps=1e-6,
        rope=_QWEN_ROPE,
        kinds=(LayerKind(None, mixer="delta_rule"), LayerKind(_QWEN_ROPE)),
        kind_of_layer=(0, 0, 0, 1) * 6,
        unit_offset=True,
        qk_norm="head",
        tied_head=True,
        output_gate=True,
        delta=DeltaTraits(num_key_heads=16, num_value_heads=16, key_dim=128, value_dim=128, conv_width=4),
    ),
    "olmoe-3-layers": Traits(
        family="OlmoeForCausalLM",
        num_layers=3,
        hidden_size=2048,
        intermediate_size=1024,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        vocab_size=50_304,
        max_positions=8192,
        norm_eps=1e-5,
        rope=_OLMOE_ROPE,
        kinds=(LayerKind(_OLMOE_ROPE, mlp="experts"),),
        kind_of_layer=(0,) * 3,
        qk_norm="projection",
        experts=ExpertTraits(num_experts=64, num_used=8, intermediate_size=1024, normalised=False),
    ),
}
"""Shapes to fill with random weights."""


def bf16_folder(model: str, work: Path) -> Path:
    """A model's folder if all its weights are bf16, else a copy of it under `work` with its weights rounded to bf16."""
    located = locate(model)
    traits, files = open_model(located)
    if located.kind != "gguf" and set(files.stored_as()) == {"BF16"}:
        return located.path
    folder = work / f"{located.model_id}-bf16"
    if (folder / "config.json").is_file():
        return folder
    if located.kind == "gguf":
        if traits.rope.kind != "default" or "rope_freqs.weight" in files.shapes:
            raise SystemExit(f"{model}: its rotary scaling has no place in a config.json; give a Hugging Face folder")
        config = config_of(traits)
    else:
        config = {**read_config(located.path), "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = whole_tokenizer(located)
    tokenizer.save_pretrained(folder)
    config |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    _write(folder, {name: files.read(name).bfloat16() for name in expected_shapes(traits)}, config)
    return folder


def whole_tokenizer(located: Located) -> Any:
    """A model's tokenizer as transformers reads it, which can be saved; psyfast's own of a GGUF file cannot."""
    from transformers import AutoTokenizer

    if located.kind == "gguf":
        return AutoTokenizer.from_pretrained(str(located.path.parent), gguf_file=located.path.name)
    return AutoTokenizer.from_pretrained(str(located.path), local_files_only=True)


def random_folder(shape: str, tokenizer_folder: Path, work: Path) -> Path:
    """Random bf16 weights in a shape of SHAPES, with another model's tokenizer (whose ids must be in its vocabulary)."""
    traits = SHAPES[shape]
    folder = work / f"random-{shape}"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in tokenizer_folder.iterdir():
        if path.name not in ("config.json", "generation_config.json") and path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dims in expected_shapes(traits).items():
        noise = torch.randn(dims, generator=generator)
        tensors[name] = _random(name, noise, traits).bfloat16()
    ids = {key: read_config(tokenizer_folder).get(key) for key in ("bos_token_id", "eos_token_id")}
    _write(folder, tensors, {**config_of(traits), **ids})
    return folder


def _random(name: str, noise: torch.Tensor, traits: Traits) -> torch.Tensor:
    """Values of the size that such a tensor has at the start of a training."""
    if "norm" in name:
        ones = 0.0 if traits.unit_offset and "linear_attn" not in name else 1.0
        return ones + 0.1 * noise
    if name.endswith("A_log"):
        return (8 + 4 * noise.clamp(-1.9, 1.9)).log()  # rates of 0.4 to 16
    if name.endswith("dt_bias"):
        return noise - 4
    return (0.3 if "conv1d" in name else 0.02) * noise


def config_of(traits: Traits) -> dict[str, Any]:
    """config.json of a model of the Llama, OLMoE or Qwen3.5 family without scaling of its rotary frequencies."""
    config = _plain_config(traits)
    if traits.experts is not None:
        return config | {
            "model_type": "olmoe",
            "num_experts": traits.experts.num_experts,
            "num_experts_per_tok": traits.experts.num_used,
            "norm_topk_prob": traits.experts.normalised,
        }
    if traits.delta is None:
        return config
    types = {"delta_rule": "linear_attention", "attention": "full_attention"}
    rope = {
        "rope_type": "default",
        "rope_theta": traits.rope.base,
        "partial_rotary_factor": traits.rope.rotated_share,
        "mrope_section": [11, 11, 10],
    }
    return config | {
        "model_type": "qwen3_5_text",
        "rope_parameters": rope,
        "layer_types": [types[kind.mixer] for kind in traits.layers],
        "linear_num_key_heads": traits.delta.num_key_heads,
        "linear_num_value_heads": traits.delta.num_value_heads,
        "linear_key_head_dim": traits.delta.key_dim,
        "linear_value_head_dim": traits.delta.value_dim,
        "linear_conv_kernel_dim": traits.delta.conv_width,
    }


def _plain_config(traits: Traits) -> dict[str, Any]:
    return {
        "architectures": [traits.family],
        "model_type": "llama",
        "vocab_size": traits.vocab_size,
        "hidden_size": traits.hidden_size,
        "intermediate_size": traits.intermediate_size,
        "num_hidden_layers": traits.num_layers,
        "num_attention_heads": traits.num_heads,
        "num_key_value_heads": traits.num_kv_heads,
        "head_dim": traits.head_dim,
        "max_position_embeddings": traits.max_positions,
        "rms_norm_eps": traits.norm_eps,
        "rope_theta": traits.rope.base,
        "hidden_act": traits.activation,
        "tie_word_embeddings": traits.tied_head,
        "attention_bias": traits.qkv_bias,
        "mlp_bias": False,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # last, under its final name: it says that the folder is whole
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def traits_of(folder: Path, context_limit: int | None = None) -> Traits:
    """Traits of a folder, with another limit of positions where one is given."""
    traits, _ = open_model(locate(str(folder)))
    return traits if context_limit is None else replace(traits, max_positions=context_limit)
