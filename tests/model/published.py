"""Configurations of published models, with where their numbers are published: tests/model/published.toml, read.

Those with experts, which are not of the study, stand in published_experts.toml.

`python -m tests.model.published` writes docs/published.md.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from psyfast.model.families import FAMILIES
from psyfast.model.load.checks import expected_shapes
from psyfast.model.load.config import traits_from_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).with_suffix(".toml")
DATA_WITH_EXPERTS = DATA.with_name("published_experts.toml")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "published.md"
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class SizeClass:
    """One size of a family.

    models: of the study. num_params: of the whole model, as published: exact if an integer, rounded if not, None where we
    know of no place; num_used: of those that a token meets, where there are experts.
    """

    name: str
    config: dict[str, Any]
    models: tuple[str, ...]
    source: tuple[str, ...]
    num_params: int | float | None
    counted: str | None
    num_used: float | None = None


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(below))
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if nested else None if value == "null" else copy.deepcopy(value)
    return merged


def _of_family(family: Mapping[str, Any], known: dict[str, SizeClass]) -> Iterator[SizeClass]:
    named = {"architectures": [family["architecture"]], "model_type": family["model_type"]}
    shared = _laid_over(named, family["config"])
    for size in family["size"]:
        like = known[size["like"]] if "like" in size else None
        config = copy.deepcopy(like.config) if like else _laid_over({}, shared)
        text = config[family["text"]] if "text" in family else config
        text.update(zip(SHAPE, size.get("shape", ()), strict=False))
        if pattern := family.get("layer_types"):
            num_layers = text["num_hidden_layers"]
            text["layer_types"] = (pattern * num_layers)[:num_layers]
        known[size["name"]] = SizeClass(
            name=size["name"],
            config=_laid_over(config, size.get("config", {})),
            models=tuple(size.get("models", ())),
            source=tuple(size["source"]),
            num_params=size.get("num_params", like and like.num_params),
            counted=size.get("counted", like and like.counted),
            num_used=size.get("num_used"),
        )
        yield known[size["name"]]


def _read(data: Path) -> tuple[dict[str, str], dict[str, SizeClass]]:
    read, known = tomllib.loads(data.read_text(encoding="utf-8")), dict[str, SizeClass]()
    return read["sources"], {size.name: size for family in read["family"] for size in _of_family(family, known)}


SOURCES, OF_FAMILIES = _read(DATA)
SOURCES_WITH_EXPERTS, WITH_EXPERTS = _read(DATA_WITH_EXPERTS)
CLASSES = OF_FAMILIES | WITH_EXPERTS
LOADABLE = {family.architecture for family in FAMILIES}
PUBLISHED = {name: size.config for name, size in CLASSES.items() if size.config["architectures"][0] in LOADABLE}


def of_transformers(config: Mapping[str, Any]) -> Any:
    """The model that transformers makes of a configuration, without memory for its weights."""
    import torch
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        return model_class(model_class.config_class.from_dict(copy.deepcopy(config)))


def saved_by_transformers(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors by the names that they are saved under: experts that it holds together are apart there."""
    from transformers.core_model_loading import revert_weight_conversion

    tensors = model.state_dict()
    if any(".experts." in name for name in tensors):
        tensors = revert_weight_conversion(model, tensors)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def num_used(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> float:
    """Weights that a token meets: of the experts' those of the ones that it uses."""
    num_experts = config.get("num_experts", config.get("num_local_experts", 1))
    share = config.get("num_experts_per_tok", 1) / num_experts
    return sum(prod(shape) * (share if ".experts." in name else 1) for name, shape in shapes.items())


def _shown(source: str) -> str:
    is_address = re.match(r"\S+\.\S+/", source)
    return f"`{source}`" if is_address else source


def _sources(size: SizeClass) -> str:
    return "; ".join(map(_shown, size.source)) + (f"; published: {_shown(size.counted)}" if size.counted else "")


def _row(size: SizeClass) -> str:
    traits = traits_from_config(size.config, size.name)
    shapes = expected_shapes(traits)
    ours = f"{sum(map(prod, shapes.values())) / 1e9:.4g}"
    published = f"{size.num_params / 1e9:.4g}" if size.num_params else ""
    shape = f"{traits.num_layers} | {traits.hidden_size:,}"
    heads = f"{traits.num_heads} / {traits.num_kv_heads}"
    if traits.experts is None:
        return f"| {size.name} | {ours} | {published} | {shape} | {traits.intermediate_size:,} | {heads} | {_sources(size)} |"
    ours += f", {num_used(shapes, size.config) / 1e9:.4g}"
    published += f", {size.num_used / 1e9:.4g}" if size.num_used else ""
    experts = f"{traits.experts.num_used} of {traits.experts.num_experts} | {traits.experts.intermediate_size:,}"
    return f"| {size.name} | {ours} | {published} | {shape} | {experts} | {heads} | {_sources(size)} |"


def page() -> str:
    """docs/published.md: a row for each size class."""
    study = [_row(CLASSES[name]) for name in PUBLISHED if name in OF_FAMILIES]
    others = [_row(CLASSES[name]) for name in PUBLISHED if name in WITH_EXPERTS]
    named = [f"- {key}: {where}" for key, where in (SOURCES | SOURCES_WITH_EXPERTS).items()]
    return "\n".join([*HEADING, *study, "", *HEADING_OF_EXPERTS, *others, "", *named, ""])


HEADING = [
    "# Published configurations",
    "",
    "Written by `python -m tests.model.published` from `tests/model/published.toml`; what is tested is in",
    "[models.md](models.md). Weights: billions that psyfast reads of it (`psyfast plan`); published: of the whole model, vision",
    "towers and cross-attention included. Layers are those that text runs through; heads: of queries / of keys and values.",
    "",
    "| size class | weights | published | layers | hidden | feed-forward | heads | sources |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
]
HEADING_OF_EXPERTS = [
    "With experts, from `tests/model/published_experts.toml`; none of these is of the study. Weights: all, and what a token",
    "meets of them.",
    "",
    "| size class | weights | published | layers | hidden | experts | feed-forward of one | heads | sources |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
