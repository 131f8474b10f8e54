"""Which models load: the families, and what a given folder or file is, without reading its weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from math import prod
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from psyfast.errors import ModelError
from psyfast.model.families import FAMILIES, Family
from psyfast.model.load.checks import check_tensors, expected_shapes
from psyfast.model.load.locate import Located, locate
from psyfast.model.load.model import open_model
from psyfast.model.rope import RopeTraits
from psyfast.model.traits import DeltaTraits, LayerKind, Traits

_WINDOWS = {
    "none": "",
    "every": "a window, or none, in every layer",
    "late": "windows in late layers, if any",
    "but_every_nth": "windows, but one layer in {nth} full",
    "without_rope": "windows in layers without rope, if any",
}


def families() -> list[dict[str, Any]]:
    """Each family that loads: `architecture`, `gguf` (None where its GGUF files are not read), `differs` (phrases)."""
    return [
        {"architecture": family.architecture, "gguf": family.gguf_architecture, "differs": _differences(family)}
        for family in FAMILIES
    ]


def _differences(family: Family) -> list[str]:
    phrases = [
        "bias of q, k and v" if family.bias == "qkv" else "",
        {"before": "", "after": "norms after, not before", "around": "norms before and after"}[family.norms],
        "norm weights + 1" if family.unit_offset else "",
        {None: "", "head": "q/k norm a head", "projection": "q/k norm over all heads"}[family.qk_norm],
        _WINDOWS[family.windows].format(nth=family.nth),
        "a rope for each type of layer" if family.rope_a_type else "",
        "layers without rope" if "no_rope_layers" in family.honours else "",
        "soft caps" if "final_logit_softcapping" in family.honours else "",
        "scaled embedding" if family.scaled_embedding else "",
        "fused matrices" if family.fused else "",
        f"gated delta rule, but one layer in {family.nth} attention" if family.delta else "",
        "experts in place of MLPs" if family.expert_width else "",
        "attention sinks" if family.sinks else "",
        "gate of attention's output" if family.output_gate else "",
        "cross-attention skipped" if family.skips else "",
        "vision tower ignored" if family.vision else "",
    ]
    return [phrase for phrase in phrases if phrase]


def describe_model(model: str, revision: str | None = None) -> dict[str, Any]:
    """What a model is: `model`, `kind`, `path`, `traits`, `parameters`, `met_by_a_token`, `stored_as`, `bytes`, and
    `why_not`.

    met_by_a_token: parameters without the experts that a token leaves; as many as there are, where all are met. why_not: None where it loads, else what is missing; then what could not be found out is None. Headers are read alone.
    Raises ModelError where there is no such model. A hub id that is not in the cache is downloaded.
    """
    located = locate(model, revision)
    found: dict[str, Any] = {"model": located.model_id, "kind": located.kind, "path": str(located.path)}
    return found | dict.fromkeys(_FOUND) | _read(located)


_FOUND = ("traits", "parameters", "met_by_a_token", "stored_as", "bytes", "why_not")


def _read(located: Located) -> dict[str, Any]:
    try:
        traits, files = open_model(located)
    except ModelError as error:
        return {"why_not": str(error)}
    found = {
        "traits": asdict(traits),
        "layers": [_kind_in_words(count, kind, traits) for count, kind in _counted(traits)],
        "parameters": (num_params := sum(prod(shape) for shape in expected_shapes(traits).values())),
        "met_by_a_token": num_params - _left_by_a_token(traits),
        "stored_as": list(files.stored_as()),
        "bytes": sum(path.stat().st_size for path in files.files),
    }
    try:
        check_tensors(files, traits, str(located.path))
    except ModelError as error:
        found["why_not"] = str(error)
    return found


def _left_by_a_token(traits: Traits) -> int:
    """Parameters of the experts that a token does not use."""
    if (experts := traits.experts) is None:
        return 0
    D, F = traits.hidden_size, experts.intermediate_size
    of_one = 3 * D * F + (2 * F + D if experts.biases else 0)
    num_layers = sum(kind.mlp == "experts" for kind in traits.layers)
    return num_layers * (experts.num_experts - experts.num_used) * of_one


def _counted(traits: Traits) -> list[tuple[int, LayerKind]]:
    return [(count, traits.kinds[kind]) for kind, count in sorted(Counter(traits.kind_of_layer).items())]


def _kind_in_words(count: int, kind: LayerKind, traits: Traits) -> str:
    mixer = _mixer_in_words(count, kind, traits.delta)
    if traits.experts is None:
        return mixer
    if kind.mlp == "dense":
        return f"{mixer}; one MLP"
    return f"{mixer}; {traits.experts.num_used} of {traits.experts.num_experts} experts a token"


def _mixer_in_words(count: int, kind: LayerKind, delta: DeltaTraits | None) -> str:
    if kind.mixer == "delta_rule" and delta is not None:
        keys = f"{delta.num_key_heads} heads of keys of {delta.key_dim}"
        values = f"{delta.num_value_heads} of values of {delta.value_dim}"
        return f"{count} mix by the gated delta rule; {keys}, {values}, a filter of {delta.conv_width} positions"
    sees = "all before" if kind.window is None else f"the last {kind.window:,}"
    return f"{count} see {sees}; {_rope_in_words(kind.rope)}"


def _rope_in_words(rope: RopeTraits | None) -> str:
    if rope is None:
        return "no rope"
    scaling = "" if rope.kind == "default" else f", {rope.kind}" + (f" × {rope.factor:g}" if rope.factor != 1 else "")
    share = "" if rope.rotated_share == 1 else f", {rope.rotated_share:.0%} of a head"
    return f"rope base {rope.base:,.0f}{scaling}{share}"


def families_table() -> Table:
    """One line a family."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    # The last column is narrowed first; this one is folded, not cut off: it would be no name.
    longest = max(len(family.architecture) for family in FAMILIES)
    table.add_column("architecture", style="bold", overflow="fold", width=longest)
    table.add_column("GGUF", no_wrap=True)
    table.add_column("differs from the plain decoder in", overflow="fold")
    for family in families():
        table.add_row(family["architecture"], family["gguf"] or "–", "; ".join(family["differs"]) or "–")
    return table


def model_table(found: dict[str, Any]) -> Table:
    """What `describe_model` found, a line each."""
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", escape(found["model"]))
    table.add_row("found at", escape(found["path"]))
    if (traits := found["traits"]) is not None:
        table.add_row("family", traits["family"])
        left = found["parameters"] - found["met_by_a_token"]
        met = f"; a token meets {found['met_by_a_token']:,}" if left else ""
        table.add_row("parameters", f"{found['parameters']:,} (text body){met}")
        table.add_row("stored as", f"{', '.join(found['stored_as'])}, {found['bytes'] / 1e9:.2f} GB")
        skipped = len(traits["skipped_layers"])
        table.add_row("layers", f"{traits['num_layers']}" + (f" ({skipped} more are skipped)" if skipped else ""))
        for kind in found["layers"]:
            table.add_row("", kind)
        heads = f"{traits['num_heads']} heads of {traits['head_dim']}, {traits['num_kv_heads']} of keys and values"
        table.add_row("attention", heads)
        widths = f"hidden {traits['hidden_size']:,}"
        if any(kind["mlp"] == "dense" for kind in traits["kinds"]):
            widths += f", feed-forward {traits['intermediate_size']:,}"
        if (experts := traits["experts"]) is not None:
            widths += f", of an expert {experts['intermediate_size']:,}"
        table.add_row("sizes", f"{widths}, vocabulary {traits['vocab_size']:,}")
        table.add_row("context", f"{traits['max_positions']:,} positions")
        table.add_row("norms", f"{traits['norms']} attention and MLP" + _qk_norm_in_words(traits["qk_norm"]))
        table.add_row("head", "the embedding's matrix" if traits["tied_head"] else "a matrix of its own")
    table.add_row("loads", "yes" if found["why_not"] is None else "no: " + escape(found["why_not"]))
    return table


def _qk_norm_in_words(qk_norm: str | None) -> str:
    if qk_norm is None:
        return ""
    return "; of each head of q and k" if qk_norm == "head" else "; of all heads of q, and of all of k"
