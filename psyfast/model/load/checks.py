"""Whether a model's files hold the tensors that its configuration asks for, before its matrices are read."""

from __future__ import annotations

import torch
from torch import Tensor

from psyfast.errors import ModelError
from psyfast.model.families import FAMILIES
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
    needless,
    qkv_names,
    router_name,
    sinks_name,
)
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.traits import Traits

Shapes = dict[str, tuple[int, ...]]
_ROWS_AT_ONCE = 4096


def expected_shapes(traits: Traits) -> Shapes:
    """Every tensor that a model of these traits has, by its Hugging Face name."""
    D, V = traits.hidden_size, traits.vocab_size
    shapes: Shapes = {EMBEDDING: (V + traits.num_extra_rows, D), FINAL_NORM + ".weight": (D,)}
    if not traits.tied_head:
        shapes[HEAD] = (V, D)
    for layer_idx in range(traits.num_layers):
        layer = layer_prefix(traits, layer_idx)
        shapes |= {f"{layer}{norm}.weight": (D,) for norm in NORM_NAMES[traits.norms] if norm is not None}
        kind = traits.kinds[traits.kind_of_layer[layer_idx]]
        shapes |= _delta_shapes(traits, layer) if kind.mixer == "delta_rule" else _attention_shapes(traits, layer)
        shapes |= _experts_shapes(traits, layer) if kind.mlp == "experts" else _mlp_shapes(traits, layer)
    return shapes


def _attention_shapes(traits: Traits, layer: str) -> Shapes:
    D, E = traits.hidden_size, traits.head_dim
    HE, KE = traits.num_heads * E, traits.num_kv_heads * E
    shapes: Shapes = {f"{layer}self_attn.o_proj.weight": (D, HE)}
    q_rows = 2 * HE if traits.output_gate else HE
    for name, rows in zip(qkv_names(traits, layer), [HE + 2 * KE] if traits.fused else [q_rows, KE, KE], strict=True):
        shapes[name + ".weight"] = (rows, D)
        if traits.qkv_bias:
            shapes[name + ".bias"] = (rows,)
    if traits.o_bias:
        shapes[f"{layer}self_attn.o_proj.bias"] = (D,)
    if traits.sinks:
        shapes[sinks_name(layer)] = (traits.num_heads,)
    if traits.qk_norm is not None:
        of_head = traits.qk_norm == "head"
        shapes[f"{layer}self_attn.q_norm.weight"] = (E if of_head else HE,)
        shapes[f"{layer}self_attn.k_norm.weight"] = (E if of_head else KE,)
    return shapes


def _delta_shapes(traits: Traits, layer: str) -> Shapes:
    delta, D = traits.delta, traits.hidden_size
    assert delta is not None
    C, H, HV = delta.num_channels, delta.num_value_heads, delta.width
    shapes: Shapes = {
        "qkv": (C, D),
        "gate": (HV, D),
        "decay": (H, D),
        "write": (H, D),
        "conv": (C, 1, delta.conv_width),
        "log_rate": (H,),
        "time_bias": (H,),
        "head_norm": (delta.value_dim,),
        "out": (D, HV),
    }
    return {name: shapes[part] for part, name in delta_names(layer).items()}


def _mlp_shapes(traits: Traits, layer: str) -> Shapes:
    D, F = traits.hidden_size, traits.intermediate_size
    names = gate_up_names(traits, layer)
    shapes: Shapes = {name + ".weight": (2 * F // len(names), D) for name in names}
    return shapes | {f"{layer}mlp.down_proj.weight": (D, F)}


def _experts_shapes(traits: Traits, layer: str) -> Shapes:
    assert traits.experts is not None
    X, D, F = traits.experts.num_experts, traits.hidden_size, traits.experts.intermediate_size
    shapes: Shapes = {router_name(layer): (X, D)}
    if traits.experts.biases:
        of_bias = {"router": (X,), "gate": (X, F), "up": (X, F), "down": (X, D)}
        shapes |= {name: of_bias[part] for part, name in expert_bias_names(layer).items()}
    of_part = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    for expert in range(X):
        shapes |= {name: of_part[part] for part, name in expert_names(layer, expert).items()}
    return shapes


def check_tensors(files: TensorFiles, traits: Traits, where: str) -> None:
    """ModelError naming the first tensor that is missing, left over, misshapen or of a type that cannot be read."""
    expected = expected_shapes(traits)
    if traits.tied_head and HEAD in files.shapes:  # stored again
        expected[HEAD] = (traits.vocab_size, traits.hidden_size)
    for name, shape in expected.items():
        if name not in files.shapes:
            or_tied = ", or set 'tie_word_embeddings' to true if the embedding is the head" if name == HEAD else ""
            stored_name = files.stored_name(name)
            raise ModelError(
                f"{where}: tensor '{stored_name}' {list(shape)} is missing; download the model again{or_tied}"
            )
        if files.shapes[name] != shape:
            got = list(files.shapes[name])
            stored_name = files.stored_name(name)
            raise ModelError(
                f"{where}: tensor '{stored_name}' has shape {got}, expected {list(shape)} from the configuration"
            )
        files.dtype(name)
    vision = next((family.vision for family in FAMILIES if family.architecture == traits.family), ())
    left_over = [name for name in files.shapes if name not in expected and not needless(name, traits, vision)]
    if left_over:
        more = f", nor are {len(left_over) - 1} more" if len(left_over) > 1 else ""
        raise ModelError(
            f"{where}: tensor '{files.stored_name(left_over[0])}' is none of {traits.family}'s{more}; the file is another model's"
        )


def check_tied_head(files: TensorFiles, traits: Traits, where: str) -> None:
    """ModelError where a head is stored beside the embedding that it is said to be, and is another matrix.

    transformers 5 then takes the stored head, earlier versions the embedding. Reads both where both are stored.
    """
    both, shape = (EMBEDDING, HEAD), (traits.vocab_size, traits.hidden_size)
    if not traits.tied_head or any(files.shapes.get(name) != shape for name in both):
        return
    for start in range(0, shape[0], _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, shape[0])
        if not torch.equal(*(_rows(files, name, start, stop) for name in both)):
            raise ModelError(
                f"{where}: tensor '{HEAD}' differs from the embedding, and 'tie_word_embeddings' is true; "
                "set it to false where the head is a matrix of its own, else delete the tensor"
            )


def _rows(files: TensorFiles, name: str, start: int, stop: int) -> Tensor:
    out = torch.empty(stop - start, files.shapes[name][1])
    files.read_into(name, out, start)
    return out
