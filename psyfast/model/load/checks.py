"""Whether a model's files hold the tensors that its configuration asks for, before a value is read."""

from __future__ import annotations

from psyfast.errors import ModelError
from psyfast.model.load.tensors import TensorFiles
from psyfast.model.traits import Traits


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
    """ModelError naming the first tensor that is missing, left over, misshapen or of a type that cannot be read."""
    expected = expected_shapes(traits)
    for name, shape in expected.items():
        if name not in files.shapes:
            raise ModelError(f"{where}: tensor '{name}' {list(shape)} is missing; download the model again")
        if files.shapes[name] != shape:
            got = list(files.shapes[name])
            raise ModelError(f"{where}: tensor '{name}' has shape {got}, expected {list(shape)} from the configuration")
        files.dtype(name)
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
