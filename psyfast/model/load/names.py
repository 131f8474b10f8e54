"""What the tensors of a decoder are called: Hugging Face's names, in the spelling without a vision model around it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from psyfast.model.traits import Norms, Traits

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm"

_SPELLINGS = (
    ("model.language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
"""How a text body's names begin inside a vision model, and without one."""


class NormNames(NamedTuple):
    """A layer's norms, by where they stand; None where there is none."""

    attn_in: str | None
    attn_out: str | None
    mlp_in: str | None
    mlp_out: str | None


NORM_NAMES: dict[Norms, NormNames] = {
    "before": NormNames("input_layernorm", None, "post_attention_layernorm", None),
    "after": NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "around": NormNames(
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
    ),
}


MIXTRAL = ".block_sparse_moe."
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Its spelling of an expert's projections."""
_OF_MIXTRAL = {plain: theirs for theirs, plain in _MIXTRAL.items()}


def plain_name(name: str) -> str:
    """A tensor's name as a model of text alone has it, with experts in the spelling of most families."""
    for prefix, plain in _SPELLINGS:
        if name.startswith(prefix):
            name = plain + name.removeprefix(prefix)
            break
    name = name.replace(".mlp.router.", ".mlp.gate.")
    before, mixtral, after = name.partition(MIXTRAL)
    if not mixtral:
        return name
    return before + ".mlp." + re.sub(r"\b(w[123])\b", lambda found: _MIXTRAL[found[1]], after)


def mixtral_name(name: str) -> str:
    """A tensor's name in Mixtral's spelling."""
    before, of_experts, after = name.partition(".mlp.")
    if not of_experts:
        return name
    return before + MIXTRAL + re.sub(r"\b(gate|up|down)_proj\b", lambda found: _OF_MIXTRAL[found[0]], after)


def layer_prefix(traits: Traits, layer_idx: int) -> str:
    """What the names of a layer begin with in the files."""
    return f"model.layers.{traits.stored_layers[layer_idx]}."


def qkv_names(traits: Traits, layer: str) -> list[str]:
    """The projections to queries, keys and values, in this order."""
    return [f"{layer}self_attn.{name}_proj" for name in (("qkv",) if traits.fused else "qkv")]


def delta_names(layer: str) -> dict[str, str]:
    """The tensors of a layer that mixes by the delta rule."""
    parts = {
        "qkv": "in_proj_qkv.weight",
        "gate": "in_proj_z.weight",
        "decay": "in_proj_a.weight",
        "write": "in_proj_b.weight",
        "conv": "conv1d.weight",
        "log_rate": "A_log",
        "time_bias": "dt_bias",
        "head_norm": "norm.weight",
        "out": "out_proj.weight",
    }
    return {part: f"{layer}linear_attn.{name}" for part, name in parts.items()}


def gate_up_names(traits: Traits, layer: str) -> list[str]:
    """The gate's projection and the other, in this order."""
    return [f"{layer}mlp.{name}_proj" for name in (("gate_up",) if traits.fused else ("gate", "up"))]


def router_name(layer: str) -> str:
    """The matrix that experts are chosen by."""
    return f"{layer}mlp.gate.weight"


def expert_bias_names(layer: str) -> dict[str, str]:
    """Biases of the router, and of all experts' projections of a kind, where they have some."""
    of_experts = {part: f"{layer}mlp.experts.{part}_proj_bias" for part in ("gate", "up", "down")}
    return {"router": f"{layer}mlp.gate.bias", **of_experts}


def sinks_name(layer: str) -> str:
    """Attention's logits without a value."""
    return f"{layer}self_attn.sinks"


def expert_names(layer: str, expert: int) -> dict[str, str]:
    """An expert's projections."""
    return {part: f"{layer}mlp.experts.{expert}.{part}_proj.weight" for part in ("gate", "up", "down")}


def needless(name: str, traits: Traits, vision: Iterable[str]) -> bool:
    """Whether a tensor is one that text does not need: of a vision tower, or of a layer that is not run.

    Also what older files keep beside the weights: rotary tables, GGUF's rope factors, a tied head stored again.
    """
    if name.endswith("rotary_emb.inv_freq") or name == "rope_freqs.weight":
        return True
    if name == HEAD:
        return traits.tied_head
    if layer := re.match(r"model\.layers\.(\d+)\.", name):
        return int(layer[1]) in traits.skipped_layers
    return name.removeprefix("model.").startswith(tuple(vision))
