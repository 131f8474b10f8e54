"""What a run is asked to do: frozen, checked once, written into the manifest whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from psyfast.errors import UsageError

PROTOCOLS = ("exact", "paper")
LANES = ("bf16", "fp32")
TRIAL_SOURCES = ("data", "callable")
SUBSETS = ("test",)
OPTION_SOURCES = ("data", "auto", "callable")
WEIGHTS = ("auto", "resident", "streamed")
MAX_THREADS = 1024
OnBadRow = Literal["error", "skip"]

_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}
_UNIT_OF = {name.lower(): factor for name, factor in _UNITS.items()}


@dataclass(frozen=True)
class ScoreConfig:
    """Everything that decides a run's results, and how it is carried out.

    sources: files, folders or data set ids. revision, data_revision: of models and data sets on the Hub. memory_limit:
    of the whole process, in bytes or as "3GB" (None: the memory at hand). weights: `resident` in memory, `streamed`
    layer by layer, or `auto`: resident where they fit. window_slots: page slots a window may take (None: planned from the
    memory; the manifest keeps the number). num_workers: processes that tokenise (0: none beside this one). isa: the native
    level (None: the highest here). options: where choice sets come from: the `data`, `auto` for transcripts that bring
    none, or a `callable` that Python handed over beside this configuration. conditions: renderings of the transcripts, by
    name (docs/conditions.md). trials: as options; the `data`'s field before what is found in the text. subset: `test` for the study's evaluation split. seed: of what is drawn.

    share, sparse and join_segments can be switched off for comparison, each with the same bits for more work: every
    prefix anew; every row of the last layer and of the head; short branches apart in attention.
    """

    models: tuple[str, ...]
    sources: tuple[str, ...]
    protocol: str = "exact"
    lane: str = "bf16"
    backend: str = "auto"
    device: str = "cpu"
    revision: str | None = None
    data_revision: str | None = None
    studies: tuple[str, ...] = ()
    subset: str | None = None
    limit: int | None = None
    on_bad_row: OnBadRow = "error"
    context_limit: int | None = None
    conditions: tuple[str, ...] = ("plain",)
    options: str = "data"
    trials: str = "data"
    per_token: bool = False
    isa: str | None = None
    share: bool = True
    sparse: bool = True
    join_segments: bool = True
    memory_limit: int | str | None = None
    weights: str = "auto"
    window_slots: int | None = None
    threads: int | None = None
    num_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("no model was named: give --model, for example --model smollm2-135m-instruct")
        if not self.sources:
            raise UsageError("no transcripts were named: give a file, a folder of studies or a data set id")
        for name, values in (("model", self.models), ("source", self.sources), ("study", self.studies)):
            if not all(value.strip() for value in values):
                raise UsageError(f"a {name}'s name is empty; an unset variable? give a name, or leave it out")
        _one_of("protocol", self.protocol, PROTOCOLS)
        _one_of("lane", self.lane, LANES)
        _one_of("weights", self.weights, WEIGHTS)
        _one_of("options", self.options, OPTION_SOURCES)
        _one_of("on_bad_row", self.on_bad_row, ("error", "skip"))
        if self.subset is not None:
            _one_of("subset", self.subset, SUBSETS)
        _one_of("trials", self.trials, TRIAL_SOURCES)
        for name in ("limit", "context_limit", "window_slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, expected 1 or more")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise UsageError(f"threads is {self.threads}, expected at most {MAX_THREADS}")
        if self.num_workers < 0:
            raise UsageError(f"num_workers is {self.num_workers}, expected 0 or more")

        self.memory_limit_bytes()

    def memory_limit_bytes(self) -> int | None:
        """The limit as a number; UsageError for what is no size."""
        return None if self.memory_limit is None else bytes_of(self.memory_limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the manifest has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreConfig:
        """The configuration that a manifest holds. Raises UsageError for keys that this psyfast does not know."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"the manifest's configuration has unknown keys: {', '.join(unknown)}; upgrade psyfast")
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**settings)
        except (TypeError, AttributeError) as error:
            raise UsageError(f"the manifest's configuration cannot be read ({error}); was it edited?") from error


def bytes_of(size: int | str) -> int:
    """Bytes of a number or of a size such as "3GB" (10⁹), "512 MiB" (2²⁰), "1.5gb". Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?([a-zA-Z]*)", str(size).strip())
    factor = _UNIT_OF.get(found[2].lower()) if found and not isinstance(size, (bool, float)) else None
    if found is None or factor is None or (num_bytes := int(float(found[1]) * factor)) < 1:
        units = ", ".join(name for name in _UNITS if name)
        raise UsageError(f"memory limit {size!r} is not a size; give a number of bytes, or one with a unit: {units}")
    return num_bytes


_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def seconds_of(duration: str) -> float:
    """Seconds of "90s", "30m", "1.5 h", "2d". Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) ?(s|m|min|h|d)", duration.strip())
    if found is None or not (seconds := float(found[1]) * _SECONDS[found[2]]):
        raise UsageError(f"'{duration}' is not a time; give a number with a unit: 90s, 30m, 2h, 1.5d")
    return seconds


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is '{value}', expected one of {', '.join(allowed)}")
