"""Model folders of random codes in nf4, scales quantised once more, and random LoRAs over them: of any size, for benchmarks."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BLOCK, NESTED_BLOCK = 64, 256
# Quantiles of a normal distribution, to its largest (Dettmers et al. 2023, appendix E), rounded: any 16 levels cost the same.
LEVELS = [-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0]
LEVELS += [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1]


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of Llama's kind."""

    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 128

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """A layer's projections: [rows, columns] by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.feed_forward, self.hidden),
            "mlp.up_proj": (self.feed_forward, self.hidden),
            "mlp.down_proj": (self.hidden, self.feed_forward),
        }


SHAPES = {
    "70b": Shape(8192, 28_672, 64, 8, 128_256),
    "8b": Shape(4096, 14_336, 32, 8, 32_000),
}
"""Llama 3's two, the smaller with Llama 2's vocabulary: what is measured is layers."""


def make_model(folder: Path, num_layers: int, shape: Shape) -> None:
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": num_layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 1 << 17,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    shards = {}
    for layer_idx in range(num_layers):
        layer = f"model.layers.{layer_idx}."
        tensors = {
            f"{layer}{norm}.weight": ones(shape.hidden) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for name, sizes in shape.matrices.items():
            tensors |= nf4(f"{layer}{name}.weight", sizes)
        shards |= write(folder, f"layer-{layer_idx}", tensors, save_file)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        matrix = torch.empty(shape.vocab, shape.hidden, dtype=torch.bfloat16).normal_(0, shape.hidden**-0.5)
        shards |= write(folder, name.split(".")[0 if name.startswith("lm") else 1], {name: matrix}, save_file)
    shards |= write(folder, "norm", {"model.norm.weight": ones(shape.hidden)}, save_file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def ones(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bfloat16)


def write(folder: Path, stem: str, tensors: dict[str, torch.Tensor], save_file: Any) -> dict[str, str]:
    save_file(tensors, folder / f"model-{stem}.safetensors")
    return dict.fromkeys(tensors, f"model-{stem}.safetensors")


def nf4(name: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """A random matrix as bitsandbytes stores it, scales quantised once more."""
    num_blocks = shape[0] * shape[1] // BLOCK
    state = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": "bfloat16",
        "shape": list(shape),
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": 2.5 * shape[1] ** -0.5,
    }
    return {
        name: torch.randint(0, 256, (shape[0] * shape[1] // 2, 1), dtype=torch.uint8),
        f"{name}.absmax": torch.randint(0, 256, (num_blocks,), dtype=torch.uint8),
        f"{name}.quant_map": torch.tensor(LEVELS, dtype=torch.float32),
        f"{name}.nested_absmax": torch.rand(-(-num_blocks // NESTED_BLOCK)) * 0.5 * shape[1] ** -0.5,
        f"{name}.nested_quant_map": torch.linspace(-1, 1, 256),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def make_adapter(folder: Path, num_layers: int, rank: int, shape: Shape, targets: Collection[str] = ()) -> None:
    """A random LoRA of a model's projections, or of those targets alone (`q_proj`)."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    tensors = {}
    for layer_idx in range(num_layers):
        for name, (rows, columns) in shape.matrices.items():
            if targets and name.split(".")[1] not in targets:
                continue
            module = f"base_model.model.model.layers.{layer_idx}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns) * columns**-0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
