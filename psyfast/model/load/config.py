"""From a Hugging Face config.json to Traits: the one place that reads its keys. GGUF files: psyfast.model.load.gguf_config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from psyfast.errors import ModelError
from psyfast.model.families import FAMILIES, NEUTRAL, Family
from psyfast.model.load.config_experts import expert_traits, layers_with_experts
from psyfast.model.load.config_values import Config, flag_at, number_at, object_at, positive_at, refuse_null
from psyfast.model.rope import RopeTraits, yarn_attention_scale
from psyfast.model.traits import DeltaTraits, LayerKind, Traits
from psyfast.ops.reference import ACTIVATIONS

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
MOST_LAYERS = 10_000
"""More is a slip, and would be counted one by one."""

_NEVER_NULL = frozenset(
    {
        "attention_bias",
        "decoder_sparse_step",
        "full_attention_interval",
        "hidden_act",
        "no_rope_layer_interval",
        "norm_topk_prob",
        "partial_rotary_factor",
        "rms_norm_eps",
        "rope_local_base_freq",
        "rope_theta",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "use_sliding_window",
    }
)
_MAY_BE_NULL = frozenset({"attn_logit_softcapping", "final_logit_softcapping", "sliding_window"})
"""Of the keys that a family has a default for; null then says: none. transformers refuses null elsewhere, too."""


def family_of(config: Config, where: str) -> Family:
    """The row of FAMILIES that a config names; remote code is never run, so nothing else can load."""
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelError(f"{where}: 'architectures' is {architectures!r}, expected a list of names")
    for family in FAMILIES:
        if family.architecture in architectures or (
            not architectures and config.get("model_type") in family.model_types
        ):
            return family
    named = ", ".join(map(str, architectures)) or config.get("model_type", "none named")
    remote = " (its remote code is never run)" if "auto_map" in config else ""
    raise ModelError(f"{where}: architecture {named} is not supported{remote}; supported: {_supported()}")


def _supported() -> str:
    return ", ".join(family.architecture for family in FAMILIES)


def traits_from_config(config: Config, where: str) -> Traits:
    """Traits of a supported Hugging Face config; ModelError names the key that is missing or cannot be honoured."""
    family = family_of(config, where)
    return traits_of_family(_of_text(config, family, where), family, where)


def quantisation_of(config: Config, where: str) -> Config:
    """How the weights are quantised, as the config says it; empty where they are not."""
    return object_at(config, "quantization_config", where) or object_at(
        object_at(config, "text_config", where), "quantization_config", where
    )


def _of_text(config: Config, family: Family, where: str) -> Config:
    """The text body's keys, its family's defaults where they are silent; a vision model's stand in `text_config`."""
    said = dict(object_at(config, "text_config", where) or config)
    may_be_null = _MAY_BE_NULL | ({"num_key_value_heads"} if family.null_heads else set())
    refuse_null(said, sorted(_NEVER_NULL | (family.defaults.keys() - may_be_null)), where)
    refuse_null(config, ["tie_word_embeddings"], where)
    if "tie_word_embeddings" in config:  # of the whole model, where it is said there
        said["tie_word_embeddings"] = config["tie_word_embeddings"]
    _refuse_other_tie(said, family, "tie_word_embeddings" in config, where)
    unsaid = {"rope_parameters"} if said.get("rope_scaling") else set()  # its older spelling, in the default's place
    return {key: value for key, value in family.defaults.items() if key not in unsaid} | said


def _refuse_other_tie(said: Config, family: Family, is_of_whole_model: bool, where: str) -> None:
    """What stands of a tied head in text_config alone, transformers 5 does not read, and earlier ones do."""
    tied = flag_at(family.defaults, "tie_word_embeddings", where)
    if is_of_whole_model or not family.can_tie or flag_at(said, "tie_word_embeddings", where, default=tied) == tied:
        return
    raise ModelError(
        f"{where}: 'tie_word_embeddings' is {str(not tied).lower()} in 'text_config' and missing beside it, where it would be "
        f"{str(tied).lower()}; expected it to be said of the whole model: write it beside 'text_config', too"
    )


def traits_of_family(config: Config, family: Family, where: str) -> Traits:
    """Traits of a text body's keys, its family's defaults among them. Raises ModelError."""
    _refuse_unknown_equations(config, family, where)
    hidden_size, num_heads = (
        positive_at(config, "hidden_size", where),
        positive_at(config, "num_attention_heads", where),
    )
    num_kv_heads = positive_at(config, "num_key_value_heads", where, default=num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{where}: {num_heads} query heads cannot be shared by {num_kv_heads} key/value heads")
    head_dim = positive_at(config, "head_dim", where, default=hidden_size // num_heads)
    config = {**config, "head_dim": head_dim}
    layers = _layers(config, family, where)
    kinds = tuple(dict.fromkeys(kind for _, kind in layers))
    configured_bias = family.bias == "configured" and flag_at(config, "attention_bias", where)
    return Traits(
        family=family.architecture,
        num_layers=len(layers),
        hidden_size=hidden_size,
        intermediate_size=positive_at(config, "intermediate_size", where),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=positive_at(config, "vocab_size", where),
        max_positions=positive_at(config, "max_position_embeddings", where),
        norm_eps=number_at(config, "rms_norm_eps", where, default=1e-6),
        rope=_rope_of(config, family, FULL, where),
        kinds=kinds,
        kind_of_layer=tuple(kinds.index(kind) for _, kind in layers),
        stored_layers=tuple(stored for stored, _ in layers),
        attention_scale=number_at(config, "query_pre_attn_scalar", where, default=head_dim) ** -0.5,
        norms=family.norms,
        unit_offset=family.unit_offset,
        qk_norm=family.qk_norm,
        qkv_bias=family.bias == "qkv" or configured_bias,
        o_bias=configured_bias,
        activation=family.activation or _activation(config, family),
        attention_soft_cap=_soft_cap(config, "attn_logit_softcapping", where),
        logit_soft_cap=_soft_cap(config, "final_logit_softcapping", where),
        embedding_scale=hidden_size**0.5 if family.scaled_embedding else 1.0,
        num_extra_rows=family.num_extra_rows,
        fused=family.fused,
        skipped_layers=_skipped(config, family, where),
        tied_head=family.can_tie and flag_at(config, "tie_word_embeddings", where),
        output_gate=family.output_gate,
        delta=_delta(config, where) if family.delta else None,
        experts=expert_traits(config, family, where),
        sinks=family.sinks,
    )


def _delta(config: Config, where: str) -> DeltaTraits:
    """Sizes of the layers that `layer_types` calls linear attention."""
    num_key_heads, num_value_heads = (
        positive_at(config, f"linear_num_{part}_heads", where) for part in ("key", "value")
    )
    if num_value_heads % num_key_heads:
        raise ModelError(
            f"{where}: {num_value_heads} value heads of linear attention cannot be shared by {num_key_heads} key heads; "
            "expected 'linear_num_value_heads' to be a multiple of 'linear_num_key_heads'"
        )
    return DeltaTraits(
        num_key_heads=num_key_heads,
        num_value_heads=num_value_heads,
        key_dim=positive_at(config, "linear_key_head_dim", where),
        value_dim=positive_at(config, "linear_value_head_dim", where),
        conv_width=positive_at(config, "linear_conv_kernel_dim", where),
    )


def _activation(config: Config, family: Family) -> str:
    return str(config.get("hidden_activation" if "hidden_activation" in family.defaults else "hidden_act") or "silu")


def _refuse_unknown_equations(config: Config, family: Family, where: str) -> None:
    activation = _activation(config, family)
    if activation not in ACTIVATIONS:
        raise ModelError(f"{where}: hidden_act '{activation}' is not supported; supported: {', '.join(ACTIVATIONS)}")
    if family.delta and activation != "silu":
        raise ModelError(f"{where}: hidden_act '{activation}' is not supported for {family.architecture}, only 'silu'")
    if family.output_gate and not flag_at(config, "attn_output_gate", where, default=True):
        raise ModelError(f"{where}: attn_output_gate = false is not supported for {family.architecture}; it has a gate")
    unused = {"sliding_window"} if config.get("use_sliding_window") is False else set()
    for key, neutral in NEUTRAL.items():
        if key not in family.honours | unused and config.get(key) not in (None, neutral):
            value = str(config[key]).lower() if isinstance(config[key], bool) else config[key]
            raise ModelError(f"{where}: {key} = {value} is not supported for {family.architecture}")


def _soft_cap(config: Config, key: str, where: str) -> float | None:
    return None if config.get(key) is None else number_at(config, key, where)


def _layers(config: Config, family: Family, where: str) -> list[tuple[int, LayerKind]]:
    """Each layer that is run: its number in the files, and its kind."""
    num_layers = positive_at(config, "num_hidden_layers", where)
    if num_layers > MOST_LAYERS:
        raise ModelError(f"{where}: 'num_hidden_layers' is {num_layers}, expected at most {MOST_LAYERS:,}")
    turned = _turned(config, family, num_layers, where)
    types = _layer_types(config, family, turned, where)
    window = positive_at(config, "sliding_window", where) if SLIDING in types else None
    ropes = {kind: _rope_of(config, family, kind, where) for kind in sorted(set(types))}
    skipped = _skipped(config, family, where)
    kinds = [
        LayerKind(None, mixer="delta_rule")
        if kind == LINEAR
        else LayerKind(ropes[kind] if turned[idx] else None, window if kind == SLIDING else None)
        for idx, kind in enumerate(types)
    ]
    with_experts = layers_with_experts(config, family, num_layers, where)
    kinds = [replace(kind, mlp="experts") if has else kind for kind, has in zip(kinds, with_experts, strict=True)]
    return [(idx, kind) for idx, kind in enumerate(kinds) if idx not in skipped]


def _turned(config: Config, family: Family, num_layers: int, where: str) -> list[bool]:
    """Which layers have a rotary embedding."""
    if "no_rope_layers" not in family.honours:
        return [True] * num_layers
    given = config.get("no_rope_layers")
    if given is None:
        interval = positive_at(config, "no_rope_layer_interval", where)
        return [(idx + 1) % interval != 0 for idx in range(num_layers)]
    if not isinstance(given, Sequence) or len(given) < num_layers or any(flag not in (0, 1) for flag in given):
        raise ModelError(f"{where}: 'no_rope_layers' is {given!r}, expected 0 or 1 for each of {num_layers} layers")
    return [bool(flag) for flag in given[:num_layers]]


def _layer_types(config: Config, family: Family, turned: Sequence[bool], where: str) -> list[str]:
    """Full or sliding attention, or the delta rule, for each layer: as `layer_types` lists them, or as the family derives them."""
    num_layers, given = len(turned), config.get("layer_types")
    if family.delta:
        return _delta_types(config, family, num_layers, where)
    may_slide = config.get("sliding_window") is not None and bool(
        family.windows not in ("late", "without_rope") or config.get("use_sliding_window")
    )
    if family.windows == "none":
        derived = [False] * num_layers
    elif family.windows == "every":
        derived = [True] * num_layers
    elif family.windows == "late":
        full = config.get("max_window_layers")
        if type(full) is not int:
            raise ModelError(
                f"{where}: 'max_window_layers' is {full!r}, expected the number of layers without a window"
            )
        derived = [idx >= full for idx in range(num_layers)]
    elif family.windows == "but_every_nth":
        nth = positive_at(config, "sliding_window_pattern", where, default=family.nth)
        derived = [(idx + 1) % nth != 0 for idx in range(num_layers)]
    else:
        derived = [not has_rope for has_rope in turned]
    if given is None:
        if family.windows == "but_every_nth" and any(derived):  # without a window, transformers fails as it runs
            positive_at(config, "sliding_window", where)
        return [SLIDING if may_slide and slides else FULL for slides in derived]
    if not isinstance(given, Sequence) or len(given) != num_layers or any(t not in (FULL, SLIDING) for t in given):
        raise ModelError(f"{where}: 'layer_types' is {given!r}, expected {num_layers} of '{FULL}' and '{SLIDING}'")
    if SLIDING in given and not may_slide:
        raise ModelError(f"{where}: 'layer_types' names '{SLIDING}', but no sliding window is in use; check both keys")
    if family.windows == "every" and FULL in given and may_slide:
        raise ModelError(f"{where}: 'layer_types' names '{FULL}', but every layer of {family.architecture} slides")
    return list(given)


def _delta_types(config: Config, family: Family, num_layers: int, where: str) -> list[str]:
    given = config.get("layer_types")
    if given is None:
        nth = positive_at(config, "full_attention_interval", where, default=family.nth)
        return [LINEAR if (idx + 1) % nth else FULL for idx in range(num_layers)]
    if not isinstance(given, Sequence) or len(given) != num_layers or any(t not in (FULL, LINEAR) for t in given):
        raise ModelError(f"{where}: 'layer_types' is {given!r}, expected {num_layers} of '{FULL}' and '{LINEAR}'")
    return list(given)


def _skipped(config: Config, family: Family, where: str) -> tuple[int, ...]:
    """Numbers of the layers that text does not run through."""
    if family.skips is None:
        return ()
    key, num_layers = family.skips, positive_at(config, "num_hidden_layers", where)
    given = config.get(key)
    if not isinstance(given, Sequence) or not all(type(idx) is int and 0 <= idx < num_layers for idx in given):
        raise ModelError(f"{where}: '{key}' is {given!r}, expected numbers of layers from 0 to {num_layers - 1}")
    if len(set(given)) == num_layers:
        raise ModelError(f"{where}: '{key}' names every layer; text would run through none")
    return tuple(sorted(set(given)))


def _rope_of(config: Config, family: Family, layer_type: str, where: str) -> RopeTraits:
    """The rotary embedding of a type of layer, in both spellings: rope_theta with rope_scaling, and rope_parameters.

    Where types have their own, rope_scaling is of full attention alone, and rope_parameters has a dictionary for each.
    """
    given = object_at(config, "rope_parameters", where) or object_at(config, "rope_scaling", where)
    base = config.get("rope_theta", 10_000.0)
    if family.rope_a_type:
        if layer_type == SLIDING:
            base = config.get("rope_local_base_freq", base)
        if not {FULL, SLIDING} & given.keys():
            given = {FULL: given}
    if {FULL, SLIDING} & given.keys():
        given = object_at(given, layer_type, where)
    return _rope(config, {"rope_theta": base, **given}, where)


def _rope(config: Config, scaling: Config, where: str) -> RopeTraits:
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    base = number_at(scaling, "rope_theta", where)
    if base <= 1:
        raise ModelError(f"{where}: 'rope_theta' is {base:g}, expected a number above 1")
    refuse_null(scaling, ["partial_rotary_factor"], where)
    share = number_at({**config, **scaling}, "partial_rotary_factor", where, default=1.0)
    if share > 1:
        raise ModelError(f"{where}: 'partial_rotary_factor' is {share:g}, expected a share of a head, at most 1")
    _require_pairs(config["head_dim"], share, where)
    if kind in ("default", "mrope"):  # several axes, which for text alone stand at the same place
        return RopeTraits(base=base, rotated_share=share)
    positions = {"original_max_position_embeddings": config.get("max_position_embeddings"), **scaling}
    if "original_max_position_embeddings" in config:
        positions["original_max_position_embeddings"] = config["original_max_position_embeddings"]

    def number(key: str) -> float:
        if scaling.get(key) is None:
            raise ModelError(f"{where}: rope scaling '{kind}' lacks its key '{key}'")
        return number_at(scaling, key, where)

    if kind == "linear":
        return RopeTraits(base=base, kind="linear", factor=number("factor"), rotated_share=share)
    if kind == "llama3":
        if number("low_freq_factor") >= number("high_freq_factor"):
            raise ModelError(f"{where}: 'low_freq_factor' of 'llama3' is not below its 'high_freq_factor'; check both")
        return RopeTraits(
            base=base,
            kind="llama3",
            factor=number("factor"),
            low_freq_factor=number("low_freq_factor"),
            high_freq_factor=number("high_freq_factor"),
            original_max_positions=positive_at(positions, "original_max_position_embeddings", where),
            rotated_share=share,
        )
    if kind == "yarn":
        factor = number("factor")
        mscale, mscale_all_dim = (
            number_at(scaling, key, where) if scaling.get(key) else None for key in ("mscale", "mscale_all_dim")
        )
        scale = yarn_attention_scale(factor, mscale, mscale_all_dim)
        return RopeTraits(
            base=base,
            kind="yarn",
            factor=factor,
            original_max_positions=positive_at(positions, "original_max_position_embeddings", where),
            rotated_share=share,
            beta_fast=number_at(scaling, "beta_fast", where, default=32.0),
            beta_slow=number_at(scaling, "beta_slow", where, default=1.0),
            truncate=flag_at(scaling, "truncate", where, default=True),
            attention_scale=number_at(scaling, "attention_factor", where, default=scale),
        )
    raise ModelError(f"{where}: rope scaling '{kind}' is not supported{_why(kind)}; supported: {', '.join(ROPE_KINDS)}")


def _require_pairs(head_dim: int, share: float, where: str) -> None:
    """A rotary embedding turns numbers of a head two by two."""
    num_rotated = int(head_dim * share)
    if num_rotated % 2 == 0 and num_rotated > 0:
        return
    of_share = (
        "" if share == 1 else f" and 'partial_rotary_factor' {share:g}, so that {num_rotated} of a head's numbers turn"
    )
    raise ModelError(f"{where}: 'head_dim' is {head_dim}{of_share}; expected an even number to turn, at least 2")


ROPE_KINDS = ("default", "linear", "llama3", "yarn", "mrope")


def _why(kind: str) -> str:
    """Why a kind is refused that cannot be had by reading one more key."""
    if kind in ("dynamic", "longrope", "su"):
        return " (its frequencies depend on how long the whole text is, so a token's score would on what follows it)"
    return ""
