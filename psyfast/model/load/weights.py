"""Resident weights: every tensor read once, checked against the traits, fused, and kept in the lane's storage type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.traits import Traits
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    HeadWeights,
    Lane,
    LayerWeights,
    MlpWeights,
    Norm,
    PreparedLayer,
    Rope,
)


@dataclass(frozen=True)
class ResidentWeights:
    """A whole model in memory (an engine's WeightSource)."""

    embed_tokens_VD: Tensor
    layers: tuple[PreparedLayer, ...]
    head_weights: HeadWeights

    def embed(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32."""
        return self.embed_tokens_VD[token_ids_T].float()

    def layer(self, layer_idx: int) -> PreparedLayer:
        """One layer's weights."""
        return self.layers[layer_idx]

    def head(self) -> HeadWeights:
        """Final norm and LM head."""
        return self.head_weights


def expected_shapes(traits: Traits) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of these traits has, by its Hugging Face name."""
    D, F, V = traits.hidden_size, traits.intermediate_size, traits.vocab_size
    HE, KE = traits.num_heads * traits.head_dim, traits.num_kv_heads * traits.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not traits.tied_head:
        shapes["lm_head.weight"] = (V, D)
    for layer_idx in range(traits.num_layers):
        layer = f"model.layers.{layer_idx}."
        shapes[layer + "input_layernorm.weight"] = (D,)
        shapes[layer + "post_attention_layernorm.weight"] = (D,)
        for name, rows in (("q_proj", HE), ("k_proj", KE), ("v_proj", KE)):
            shapes[f"{layer}self_attn.{name}.weight"] = (rows, D)
            if traits.qkv_bias:
                shapes[f"{layer}self_attn.{name}.bias"] = (rows,)
        shapes[layer + "self_attn.o_proj.weight"] = (D, HE)
        if traits.o_bias:
            shapes[layer + "self_attn.o_proj.bias"] = (D,)
        shapes[layer + "mlp.gate_proj.weight"] = (F, D)
        shapes[layer + "mlp.up_proj.weight"] = (F, D)
        shapes[layer + "mlp.down_proj.weight"] = (D, F)
    return shapes


def check_tensors(files: TensorFiles, traits: Traits, where: str) -> None:
    """ModelError naming the first missing, left-over or misshapen tensor."""
    expected = expected_shapes(traits)
    for name, shape in expected.items():
        if name not in files.shapes:
            raise ModelError(f"{where}: tensor '{name}' {list(shape)} is missing; download the model again")
        if files.shapes[name] != shape:
            got = list(files.shapes[name])
            raise ModelError(f"{where}: tensor '{name}' has shape {got}, expected {list(shape)} from the configuration")
    left_over = [name for name in files.shapes if name not in expected and not _may_stand_there(name, traits)]
    if left_over:
        more = f" and {len(left_over) - 1} more" if len(left_over) > 1 else ""
        raise ModelError(
            f"{where}: tensor '{left_over[0]}'{more} is none of {traits.family}'s; the file is another model's"
        )


def _may_stand_there(name: str, traits: Traits) -> bool:
    """Old files' rotary tables, GGUF's rope factors, a tied head that is stored again."""
    return (
        name.endswith("rotary_emb.inv_freq")
        or name == "rope_freqs.weight"
        or (name == "lm_head.weight" and traits.tied_head)
    )


class _Assembler:
    """Reads a model's tensors under their Hugging Face names and fuses them into the operators' records."""

    def __init__(self, files: TensorFiles, traits: Traits, lane: Lane, device: torch.device) -> None:
        self._files, self._traits, self._lane, self._device = files, traits, lane, device
        rope = traits.rope
        if "rope_freqs.weight" in files.shapes:
            rope = replace(rope, kind="factors", factors=tuple(files.read("rope_freqs.weight").tolist()))
        self._rope = Rope(rope.inv_freq(traits.head_dim).to(device))

    def matrix(self, *names: str) -> Tensor:
        parts = [self._files.read(name) for name in names]
        fused = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self._lane is Lane.BF16:
            fused = fused.bfloat16()
        elif fused.dtype == torch.float16:
            fused = fused.float()  # exact; operators take bf16 and fp32
        return fused.to(self._device)

    def vector(self, *names: str) -> Tensor:
        return torch.cat([self._files.read(name).float() for name in names]).to(self._device)

    def norm(self, name: str) -> Norm:
        return Norm(self.vector(name + ".weight"), self._traits.norm_eps)

    def layer(self, layer_idx: int) -> LayerWeights:
        traits, layer = self._traits, f"model.layers.{layer_idx}."
        qkv = [f"{layer}self_attn.{name}_proj" for name in "qkv"]
        return LayerWeights(
            attn_in=AttnInWeights(
                norm=self.norm(layer + "input_layernorm"),
                qkv_proj=self.matrix(*(name + ".weight" for name in qkv)),
                bias=self.vector(*(name + ".bias" for name in qkv)) if traits.qkv_bias else None,
                num_heads=traits.num_heads,
                num_kv_heads=traits.num_kv_heads,
                head_dim=traits.head_dim,
                rope=self._rope,
            ),
            attention=AttentionParams(scale=traits.head_dim**-0.5),
            attn_out=AttnOutWeights(
                o_proj=self.matrix(layer + "self_attn.o_proj.weight"),
                bias=self.vector(layer + "self_attn.o_proj.bias") if traits.o_bias else None,
            ),
            mlp=MlpWeights(
                norm=self.norm(layer + "post_attention_layernorm"),
                gate_up_proj=self.matrix(layer + "mlp.gate_proj.weight", layer + "mlp.up_proj.weight"),
                down_proj=self.matrix(layer + "mlp.down_proj.weight"),
                activation=traits.activation,
            ),
        )


def load_resident(
    files: TensorFiles,
    traits: Traits,
    lane: Lane,
    device: torch.device,
    where: str,
    prepare_layer: Callable[[LayerWeights], PreparedLayer] = PreparedLayer.as_loaded,
) -> ResidentWeights:
    """Read, check and fuse a whole model. Matrices stay as stored in the fp32 lane and are bf16 in the bf16 lane.

    prepare_layer: of the operators that will run it; one layer at a time is in memory both as loaded and prepared.
    """
    check_tensors(files, traits, where)
    assembler = _Assembler(files, traits, lane, device)
    embed = assembler.matrix("model.embed_tokens.weight")
    return ResidentWeights(
        embed_tokens_VD=embed,
        layers=tuple(prepare_layer(assembler.layer(layer_idx)) for layer_idx in range(traits.num_layers)),
        head_weights=HeadWeights(
            assembler.norm("model.norm"), embed if traits.tied_head else assembler.matrix("lm_head.weight")
        ),
    )
