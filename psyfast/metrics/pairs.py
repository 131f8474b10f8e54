"""Which models belong together: the study's base and post-trained pairs, and what a user's TOML file adds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from psyfast.errors import DataError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STUDY_FILE = "study_pairs.toml"
_TABLES = ("models", "pairs", "apart", "trend")


@dataclass(frozen=True)
class Model:
    """A model's facts. size_b: billions of parameters."""

    name: str
    generation: str
    size_b: float


@dataclass(frozen=True)
class Pair:
    """A base model and what was made of it. apart: it has tables of its own and enters no mean over pairs."""

    base: str
    post: str
    type: str
    apart: bool = False


@dataclass(frozen=True)
class PairTable:
    """Models by name, pairs in order, and for each generation of the trend the type of its pairs."""

    models: Mapping[str, Model] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    trend: Mapping[str, str] = field(default_factory=dict)

    def generation_of(self, pair: Pair) -> str | None:
        """The generation of the pair's base; None where nobody said."""
        model = self.models.get(pair.base)
        return model.generation if model else None

    def size_of(self, name: str) -> float | None:
        """Billions of parameters; None where nobody said."""
        model = self.models.get(name)
        return model.size_b if model else None

    def in_trend(self, pair: Pair) -> bool:
        """Whether the trend over generations takes the pair (PROTOCOL 5, by generation)."""
        generation = self.generation_of(pair)
        return not pair.apart and generation is not None and self.trend.get(generation) == pair.type

    def find(self, names: tuple[str, ...]) -> Model | None:
        """The model that one of these names means, see `name_key`."""
        keys = {name_key(name) for name in names}
        return next((model for name, model in self.models.items() if name_key(name) in keys), None)

    def type_of(self, names: tuple[str, ...]) -> str | None:
        """The type of the pair that made the model, `base` where it only is one, None where it is in no pair."""
        keys = {name_key(name) for name in names}
        made = next((pair.type for pair in self.pairs if name_key(pair.post) in keys), None)
        is_base = any(name_key(pair.base) in keys for pair in self.pairs)
        return made or ("base" if is_base else None)


def name_key(name: str) -> str:
    """What is compared of a model's name: the part after the namespace, or the adapter's, in lower case.

    `Qwen/Qwen2-7B`, the folder `Qwen2-7B` and the model_id `Qwen--Qwen2-7B` are the same model.
    """
    return name.rstrip("/").rsplit("+", 1)[-1].replace("--", "/").rsplit("/", 1)[-1].lower()


def load_pairs(extra: Path | None = None) -> PairTable:
    """The study's pairs and models, with those of a user's file added or put in the place of theirs.

    Raises DataError naming the file and the entry that cannot be read.
    """
    study = files("psyfast.metrics").joinpath(STUDY_FILE).read_text(encoding="utf-8")
    table = _read(tomllib.loads(study), STUDY_FILE)
    if extra is None:
        return table
    try:
        document = tomllib.loads(extra.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{extra}: cannot be read as a TOML file of pairs ({error})") from error
    return _joined(table, _read(document, str(extra)))


def _joined(study: PairTable, own: PairTable) -> PairTable:
    replaced = {pair.post for pair in own.pairs}
    return PairTable(
        models={**study.models, **own.models},
        pairs=(*(pair for pair in study.pairs if pair.post not in replaced), *own.pairs),
        trend={**study.trend, **own.trend},
    )


def _read(document: Mapping[str, Any], where: str) -> PairTable:
    if unknown := sorted(set(document) - set(_TABLES)):
        raise DataError(f"{where}: has '{unknown[0]}', expected the tables {', '.join(_TABLES)} (see docs/metrics.md)")
    models = {
        name: Model(name, generation, _size(size, f"{where}: models.{generation}.{name}"))
        for generation, sizes in _tables(document, "models", where).items()
        for name, size in sizes.items()
    }
    pairs = [
        Pair(_name(base, f"{where}: {kind}.{type_}.{post}"), post, type_, apart=kind == "apart")
        for kind in ("pairs", "apart")
        for type_, of_type in _tables(document, kind, where).items()
        for post, base in of_type.items()
    ]
    _refuse_doubles(pairs, where)
    trend = document.get("trend", {})
    if not isinstance(trend, dict) or not all(isinstance(type_, str) for type_ in trend.values()):
        raise DataError(f'{where}: trend is {trend!r}, expected lines like "GENERATION" = "TYPE"')
    return PairTable(models, tuple(pairs), trend)


def _tables(document: Mapping[str, Any], name: str, where: str) -> Mapping[str, Mapping[str, Any]]:
    tables = document.get(name, {})
    if not isinstance(tables, dict) or not all(isinstance(value, dict) for value in tables.values()):
        raise DataError(f"{where}: '{name}' holds lines of its own, expected tables like [{name}.NAME] above them")
    return tables


def _size(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise DataError(f"{where} is {value!r}, expected a size in billions of parameters, such as 0.5")
    return float(value)


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where} is {value!r}, expected the name of its base model")
    return value


def _refuse_doubles(pairs: list[Pair], where: str) -> None:
    seen: dict[str, Pair] = {}
    for pair in pairs:
        if pair.base == pair.post:
            raise DataError(f"{where}: '{pair.post}' is its own base; name the model it was made from")
        if pair.post in seen:
            other = seen[pair.post]
            raise DataError(f"{where}: '{pair.post}' stands under '{other.type}' and under '{pair.type}'; keep one")
        seen[pair.post] = pair
