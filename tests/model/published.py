"""Configurations of published models, with where their numbers are published: tests/model/published.toml, read.

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
PAGE = Path(__file__).resolve().parents[2] / "docs" / "published.md"
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True)
class SizeClass:
    """One size of a family.

    models: of the study. num_params: of the whole model, as published: exact if an integer, rounded if not, None where we
    know of no place.
    """

    name: str
    config: dict[str, Any]
    models: tuple[str, ...]
    source: tuple[str, ...]
    num_params: int | float | None
    counted: str | None


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
        )
        yield known[size["name"]]


def _read() -> tuple[dict[str, str], dict[str, SizeClass]]:
    read, known = tomllib.loads(DATA.read_text(encoding="utf-8")), dict[str, SizeClass]()
    return read["sources"], {size.name: size for family in read["family"] for size in _of_family(family, known)}


SOURCES, CLASSES = _read()
LOADABLE = {family.architecture for family in FAMILIES}
PUBLISHED = {name: size.config for name, size in CLASSES.items() if size.config["architectures"][0] in LOADABLE}


def of_transformers(config: Mapping[str, Any]) -> Any:
    """The model that transformers makes of a configuration, without memory for its weights."""
    import torch
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        return model_class(model_class.config_class.from_dict(copy.deepcopy(config)))


def _shown(source: str) -> str:
    is_address = re.match(r"\S+\.\S+/", source)
    return f"`{source}`" if is_address else source


def page() -> str:
    """docs/published.md: a row for each size class."""
    rows = []
    for size in map(CLASSES.__getitem__, PUBLISHED):
        traits = traits_from_config(size.config, size.name)
        num_params = sum(prod(shape) for shape in expected_shapes(traits).values())
        heads = f"{traits.num_heads} / {traits.num_kv_heads}"
        sources = "; ".join(map(_shown, size.source)) + (f"; published: {_shown(size.counted)}" if size.counted else "")
        counted = f"{size.num_params / 1e9:.4g}" if size.num_params else ""
        shape = f"{traits.num_layers} | {traits.hidden_size:,} | {traits.intermediate_size:,} | {heads}"
        rows.append(f"| {size.name} | {num_params / 1e9:.4g} | {counted} | {shape} | {sources} |")
    named = [f"- {key}: {where}" for key, where in SOURCES.items()]
    return "\n".join([*HEADING, *rows, "", *named, ""])


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

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
