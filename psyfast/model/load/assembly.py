"""Tensors of a file into the operators' records: fused, in the lane's storage type, read when they are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from psyfast.model.load.checks import check_tensors
from psyfast.model.load.names import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    NORM_NAMES,
    delta_names,
    expert_bias_names,
    expert_names,
    gate_up_names,
    layer_prefix,
    qkv_names,
    router_name,
    sinks_name,
)
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.rope import RopeTraits
from psyfast.model.traits import Traits
from psyfast.ops.records import (
    AttentionParams,
    AttnInWeights,
    AttnOutWeights,
    DeferredMatrix,
    DeltaRuleWeights,
    ExpertsWeights,
    HeadWeights,
    Lane,
    LayerWeights,
    MlpWeights,
    Norm,
    OutputGate,
    Rope,
)

CHECKED_ROWS = 4096


class Assembler:
    """Reads a model's tensors under their Hugging Face names and fuses them into the operators' records.

    Matrices are deferred: as stored in the fp32 lane (fp16 as fp32, which is exact), bf16 in the bf16 lane.
    """

    def __init__(self, files: TensorFiles, traits: Traits, lane: Lane, device: torch.device, where: str) -> None:
        """Raises ModelError where the files do not hold the model that the traits describe."""
        check_tensors(files, traits, where)
        self._files, self._traits, self._lane, self._device = files, traits, lane, device
        ropes = {kind.rope for kind in traits.kinds if kind.rope is not None}
        self._ropes = {rope: self._rope(rope) for rope in ropes}

    def _rope(self, rope: RopeTraits) -> Rope:
        if "rope_freqs.weight" in self._files.shapes:
            factors = tuple(self._files.read("rope_freqs.weight").tolist())
            rope = replace(rope, kind="factors", factors=factors)
        return Rope(rope.inv_freq(self._traits.head_dim).to(self._device), rope.attention_scale)

    def matrix(self, *names: str) -> DeferredMatrix:
        """Matrices of equal width, one above the other."""
        return self._stacked([(name, 0, self._files.shapes[name][0]) for name in names])

    def _stacked(self, runs: Sequence[tuple[str, int, int]]) -> DeferredMatrix:
        """Runs of rows (tensor, first, last + 1), one above the other."""
        files, dtype = self._files, self._dtype(*dict.fromkeys(name for name, _, _ in runs))
        starts = [0]
        for _, first_row, end_row in runs:
            starts.append(starts[-1] + end_row - first_row)
        width = files.shapes[runs[0][0]][1]

        def read(start: int, stop: int) -> Tensor:
            out = torch.empty(stop - start, width, dtype=dtype)
            for (name, first_row, _), first, end in zip(runs, starts, starts[1:], strict=False):
                lo, hi = max(start, first), min(stop, end)
                if lo < hi:
                    files.read_into(name, out[lo - start : hi - start], first_row + lo - first)
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
        return Norm(self.vector(name + ".weight"), self._traits.norm_eps, self._traits.unit_offset)

    def layer(self, layer_idx: int) -> LayerWeights:
        """A layer: its vectors, and its matrices to be read."""
        traits, layer = self._traits, layer_prefix(self._traits, layer_idx)
        kind = traits.kinds[traits.kind_of_layer[layer_idx]]
        norms = [None if name is None else self.norm(layer + name) for name in NORM_NAMES[traits.norms]]
        attn_in_norm, attn_out_norm, mlp_in_norm, mlp_out_norm = norms
        mlp = self._mlp(layer, mlp_in_norm, mlp_out_norm) if kind.mlp == "dense" else None
        experts = self._experts(layer, mlp_in_norm) if kind.mlp == "experts" else None
        if kind.mixer == "delta_rule":
            names = delta_names(layer)
            gate = OutputGate(attn_in_norm, self.matrix(names["gate"]), "silu")
            attn_out = AttnOutWeights(self.matrix(names["out"]), post_norm=attn_out_norm, gate=gate)
            return LayerWeights(None, None, attn_out, mlp, self._delta_rule(names, attn_in_norm), experts)
        return LayerWeights(
            attn_in=self._attn_in(layer, attn_in_norm, None if kind.rope is None else self._ropes[kind.rope]),
            attention=AttentionParams(
                scale=traits.attention_scale,
                window=kind.window,
                soft_cap=traits.attention_soft_cap,
                sinks_H=self.vector(sinks_name(layer)) if traits.sinks else None,
            ),
            attn_out=AttnOutWeights(
                o_proj=self.matrix(layer + "self_attn.o_proj.weight"),
                bias=self.vector(layer + "self_attn.o_proj.bias") if traits.o_bias else None,
                post_norm=attn_out_norm,
                gate=self._output_gate(layer, attn_in_norm) if traits.output_gate else None,
            ),
            mlp=mlp,
            experts=experts,
        )

    def _mlp(self, layer: str, norm: Norm | None, post_norm: Norm | None) -> MlpWeights:
        return MlpWeights(
            norm=norm,
            gate_up_proj=self.matrix(*(name + ".weight" for name in gate_up_names(self._traits, layer))),
            down_proj=self.matrix(layer + "mlp.down_proj.weight"),
            activation=self._traits.activation,
            post_norm=post_norm,
        )

    def _experts(self, layer: str, norm: Norm | None) -> ExpertsWeights:
        traits = self._traits.experts
        assert traits is not None
        names = [expert_names(layer, expert) for expert in range(traits.num_experts)]
        biases: dict[str, Tensor] = {}
        if traits.biases:
            of = {part: self.vector(name) for part, name in expert_bias_names(layer).items()}
            gate_up = torch.cat([of["gate"], of["up"]], dim=1)
            biases = {"router_bias": of["router"], "gate_up_bias": gate_up, "down_bias": of["down"]}
        return ExpertsWeights(
            norm=norm,
            router=self.matrix(router_name(layer)),
            gate_up_proj=tuple(self.matrix(of["gate"], of["up"]) for of in names),
            down_proj=tuple(self.matrix(of["down"]) for of in names),
            num_used=traits.num_used,
            normalised=traits.normalised,
            activation=self._traits.activation,
            **biases,
        )

    def _delta_rule(self, names: Mapping[str, str], norm: Norm | None) -> DeltaRuleWeights:
        delta = self._traits.delta
        assert delta is not None
        return DeltaRuleWeights(
            norm=norm,
            qkv_proj=self.matrix(names["qkv"]),
            decay_write_proj=self.matrix(names["decay"], names["write"]),
            conv_CW=self.vector(names["conv"])[:, 0],
            log_rate_H=self.vector(names["log_rate"]),
            time_bias_H=self.vector(names["time_bias"]),
            head_norm=Norm(self.vector(names["head_norm"]), self._traits.norm_eps),
            num_key_heads=delta.num_key_heads,
            num_value_heads=delta.num_value_heads,
            key_dim=delta.key_dim,
            value_dim=delta.value_dim,
        )

    def _halves(self, name: str, which: int) -> list[tuple[str, int, int]]:
        """Runs of rows: of each query head its queries (0), or the output's gate (1), which are stored head by head."""
        E = self._traits.head_dim
        firsts = [(2 * head + which) * E for head in range(self._traits.num_heads)]
        return [(name, first, first + E) for first in firsts]

    def _output_gate(self, layer: str, norm: Norm | None) -> OutputGate:
        q_name = qkv_names(self._traits, layer)[0] + ".weight"
        return OutputGate(norm, self._stacked(self._halves(q_name, 1)), "sigmoid")

    def _qkv_proj(self, layer: str) -> DeferredMatrix:
        names = [name + ".weight" for name in qkv_names(self._traits, layer)]
        if not self._traits.output_gate:
            return self.matrix(*names)
        whole = [(name, 0, self._files.shapes[name][0]) for name in names[1:]]
        return self._stacked([*self._halves(names[0], 0), *whole])

    def _attn_in(self, layer: str, norm: Norm | None, rope: Rope | None) -> AttnInWeights:
        traits, qkv = self._traits, qkv_names(self._traits, layer)
        has_norms = traits.qk_norm is not None
        return AttnInWeights(
            norm=norm,
            qkv_proj=self._qkv_proj(layer),
            bias=self.vector(*(name + ".bias" for name in qkv)) if traits.qkv_bias else None,
            num_heads=traits.num_heads,
            num_kv_heads=traits.num_kv_heads,
            head_dim=traits.head_dim,
            rope=rope,
            q_norm=self.norm(layer + "self_attn.q_norm") if has_norms else None,
            k_norm=self.norm(layer + "self_attn.k_norm") if has_norms else None,
            norm_heads_together=traits.qk_norm == "projection",
        )

    def head(self) -> HeadWeights:
        """Final norm and LM head, to be read."""
        name = EMBEDDING if self._traits.tied_head else HEAD
        return HeadWeights(self.norm(FINAL_NORM), self.matrix(name), soft_cap=self._traits.logit_soft_cap)

    def embedding(self) -> Embedding:
        """The rows of tokens. Reads all of them once, to refuse NaN before any work, unless they are the head's."""
        if not self._traits.tied_head:
            rows = self.matrix(EMBEDDING)
            for start in range(0, rows.shape[0], CHECKED_ROWS):
                rows.read(start, min(start + CHECKED_ROWS, rows.shape[0]))
        return Embedding(self._files, self._dtype(EMBEDDING), self._device, self._traits.embedding_scale)


class Embedding:
    """Rows of the token embedding, read from the file when tokens ask for them: it is never in memory as a whole.

    A batch of thousands of tokens has hundreds of different ones, so this costs milliseconds a batch.
    """

    def __init__(self, files: TensorFiles, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> None:
        self._files, self.dtype, self._device, self._scale = files, dtype, device, scale

    def rows(self, token_ids_T: Tensor) -> Tensor:
        """x_TD, fp32, of values in `dtype`, times the model's scale."""
        token_ids, place_T = token_ids_T.cpu().unique(return_inverse=True)
        values = self._files.gather(EMBEDDING, token_ids).to(self.dtype).float() * self._scale
        return values[place_T].to(self._device)
