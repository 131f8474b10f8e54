"""Experts as GGUF files have them: every expert's projection of one kind in one tensor, and what llama.cpp knows of a router.

    blk.N.ffn_gate_exps, ffn_up_exps [X, F, D]     blk.N.ffn_down_exps [X, D, F]     blk.N.ffn_gate_inp [X, D]
    and of gpt-oss their biases, and blk.N.attn_sinks [H]

An expert's matrix is a run of whole rows in the file, so that it is read like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psyfast.errors import ModelError
from psyfast.model.families import Family
from psyfast.model.load.config_values import Config, positive_at

if TYPE_CHECKING:
    from psyfast.model.load.gguf_header import StoredTensor

LAYER_NAMES = {"ffn_gate_inp": "mlp.gate"}
KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
NOT_ASSUMED = ("num_experts_per_tok", "sliding_window", "rope_parameters", "rope_theta")
"""Keys that a family's config.json may leave out, and of which llama.cpp assumes nothing, or the plain decoder's value."""
_NORMALISED = {"llama": True, "qwen3moe": True, "olmoe": False, "gpt-oss": True}
"""Whether llama.cpp makes a token's weights sum to one, where a file does not say it."""
_OF_THE_CHOSEN = 3
"""The router's softmax is over a token's experts alone, which is to make their weights sum to one."""
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "expert_gating_func": (0, 1, _OF_THE_CHOSEN),  # not said, and a softmax
    "expert_weights_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
}
"""Keys of other routers, and the values that change nothing."""
_VECTORS = {
    r"attn_sinks\.weight": "self_attn.sinks",
    **{rf"ffn_{part}_exps\.bias": f"mlp.experts.{part}_proj_bias" for part in ("gate", "up", "down")},
}
_TOGETHER = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")


def vector_name(name: str) -> str | None:
    """The Hugging Face name of a layer's sinks, and of the biases of all its experts; None for any other tensor."""
    for theirs, ours in _VECTORS.items():
        if found := re.fullmatch(rf"blk\.(\d+)\.{theirs}", name):
            return f"model.layers.{found[1]}.{ours}"
    return None


def has_experts(metadata: Mapping[str, Any]) -> bool:
    """Whether a file says that it has experts: llama.cpp calls Mixtral a `llama`, as it does the model without them."""
    return metadata.get(f"{metadata.get('general.architecture')}.expert_count") not in (None, 0)


def experts_config(metadata: Config, family: Family, where: str) -> dict[str, Any]:
    """What a file says of its experts under the names of a config.json. ModelError for a router that is not ours."""
    architecture = str(family.gguf_architecture)
    for key, neutral in _NEUTRAL.items():
        if (value := metadata.get(f"{architecture}.{key}")) is not None and value not in neutral:
            raise ModelError(f"{where}: {architecture}.{key} = {value} is not supported for {family.architecture}")
    said = {ours: metadata.get(f"{architecture}.{theirs}") for theirs, ours in KEYS.items()}
    config: dict[str, Any] = {"norm_topk_prob": _NORMALISED[architecture]}
    config |= {key: value for key, value in said.items() if value is not None}
    if metadata.get(f"{architecture}.expert_gating_func") == _OF_THE_CHOSEN:
        config["norm_topk_prob"] = True
    if "moe_intermediate_size" not in config and config.get("num_experts_per_tok"):
        width = positive_at(metadata, f"{architecture}.feed_forward_length", where)
        config["moe_intermediate_size"] = width // positive_at(config, "num_experts_per_tok", where)
    return config


def split(tensor: StoredTensor, path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Each expert's matrix under its Hugging Face name; nothing where a tensor holds no experts. Raises ModelError."""
    found = _TOGETHER.fullmatch(tensor.name)
    if found is None:
        return
    if len(tensor.shape) != 3:
        raise ModelError(
            f"{path}: tensor '{tensor.name}' has shape {list(tensor.shape)}, expected three sizes, of which the experts' "
            "number is the first; convert the model again"
        )
    num_experts, num_bytes = tensor.shape[0], tensor.num_bytes // max(1, tensor.shape[0])
    for expert in range(num_experts):
        start = tensor.start + expert * num_bytes
        name = f"model.layers.{found[1]}.mlp.experts.{expert}.{found[2]}_proj.weight"
        yield name, replace(tensor, shape=tensor.shape[1:], start=start, num_bytes=num_bytes)
