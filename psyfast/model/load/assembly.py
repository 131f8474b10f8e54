"""Tensors of a file into the operators' records: fused, in the lane's storage type, read when they are wanted."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from psyfast.model.load.checks import check_tensors
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.traits import Traits
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    DeferredMatrix,
    HeadWeights,
    Lane,
    LayerWeights,
    MlpWeights,
    Norm,
    Rope,
)

EMBEDDING = "model.embed_tokens.weight"
CHECKED_ROWS = 4096


class Assembler:
    """Reads a model's tensors under their Hugging Face names and fuses them into the operators' records.

    Matrices are deferred: as stored in the fp32 lane (fp16 as fp32, which is exact), bf16 in the bf16 lane.
    """

    def __init__(self, files: TensorFiles, traits: Traits, lane: Lane, device: torch.device, where: str) -> None:
        """Raises ModelError where the files do not hold the model that the traits describe."""
        check_tensors(files, traits, where)
        self._files, self._traits, self._lane, self._device = files, traits, lane, device
        rope = traits.rope
        if "rope_freqs.weight" in files.shapes:
            rope = replace(rope, kind="factors", factors=tuple(files.read("rope_freqs.weight").tolist()))
        self._rope = Rope(rope.inv_freq(traits.head_dim).to(device))

    def matrix(self, *names: str) -> DeferredMatrix:
        """Matrices of equal width, one above the other."""
        files, dtype = self._files, self._dtype(*names)
        starts = [0]
        for name in names:
            starts.append(starts[-1] + files.shapes[name][0])
        width = files.shapes[names[0]][1]

        def read(start: int, stop: int) -> Tensor:
            out = torch.empty(stop - start, width, dtype=dtype)
            for name, first, end in zip(names, starts, starts[1:], strict=False):
                lo, hi = max(start, first), min(stop, end)
                if lo < hi:
                    files.read_into(name, out[lo - start : hi - start], lo - first)
            return out.to(self._device)

        return DeferredMatrix((starts[-1], width), dtype, read)

    def _dtype(self, *names: str) -> torch.dtype:
        if self._lane is Lane.BF16:
            return torch.bfloat16
        stored = reduce(torch.promote_types, (self._files.dtype(name) for name in names))
        return torch.float32 if stored == torch.float16 else stored  # exact; operators take bf16 and fp32

    def vector(self, *names: str) -> Tensor:
        """Vectors one after the other, fp32."""
        return torch.cat([self._files.read(name).float() for name in names]).to(self._device)

    def norm(self, name: str) -> Norm:
        """An RMSNorm."""
        return Norm(self.vector(name + ".weight"), self._traits.norm_eps)

    def layer(self, layer_idx: int) -> LayerWeights:
        """A layer: its vectors, and its matrices to be read."""
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

    def head(self) -> HeadWeights:
        """Final norm and LM head, to be read."""
        name = EMBEDDING if self._traits.tied_head else "lm_head.weight"
        return HeadWeights(self.norm("model.norm"), self.matrix(name))

    def embedding(self) -> Embedding:
        """The rows of tokens. Reads all of them once, to refuse NaN before any work, unless they are the head's."""
        if not self._traits.tied_head:
            rows = self.matrix(EMBEDDING)
            for start in range(0, rows.shape[0], CHECKED_ROWS):
                rows.read(start, min(start + CHECKED_ROWS, rows.shape[0]))
        return Embedding(self._files, self._dtype(EMBEDDING), self._device)


class Embedding:
    """Rows of the token embedding, read from the file when tokens ask for them: it is never in memory as a whole.

    A batch of thousands of tokens has hundreds of different ones, so this costs milliseconds a batch.
    """

    def __init__(self, files: TensorFiles, dtype: torch.dtype, device: torch.device) -> None:
        self._files, self.dtype, self._device = files, dtype, device

    def rows(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32, of values in `dtype`."""
        token_ids, place_T = token_ids_T.cpu().unique(return_inverse=True)
        values = self._files.gather(EMBEDDING, token_ids).to(self.dtype).float()
        return values[place_T].to(self._device)
