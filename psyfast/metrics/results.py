"""Run folders as one body of results: which cells (model and condition) they hold, checked to belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from psyfast.errors import RunError
from psyfast.store.manifest import num_transcripts_of
from psyfast.store.run_folder import PartRecord, RunFolder, read_part_record

_SAME = (("protocol", "--protocol"), ("lane", "--lane"))


@dataclass(frozen=True)
class Part:
    """The Parquet files of one cell in one run, in the order of the data."""

    run: Path
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Cell:
    """What one model did under one condition. names: all that the model is called by. parts: one a run that has it."""

    model: str
    condition: str
    names: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def key(self) -> tuple[str, str]:
        """(model, condition)."""
        return self.model, self.condition


@dataclass(frozen=True)
class Results:
    """Finished runs of one protocol and lane, and their cells in order of model and condition.

    notes: what a reader of figures over them has to know, a sentence each.
    """

    runs: tuple[RunFolder, ...]
    protocol: str
    lane: str
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()

    def cell(self, model: str, condition: str) -> Cell | None:
        """The cell of a model and a condition; None where no run has it."""
        return next((cell for cell in self.cells if cell.key == (model, condition)), None)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, in order of name."""
        return tuple(dict.fromkeys(cell.model for cell in self.cells))


def open_results(paths: Sequence[Path]) -> Results:
    """Open run folders that are to be read as one.

    Raises RunError for a folder that is no run, is not finished, is of a newer format, or was made with another protocol
    or lane than the first; the message names both values.
    """
    if not paths:
        raise RunError("no run folder was named; give one or several that psyfast score wrote")
    resolved = [path.resolve() for path in paths]
    if twice := next((path for path in resolved if resolved.count(path) > 1), None):
        raise RunError(f"{twice}: is named twice; name every run once")
    runs = [RunFolder(path) for path in paths]
    manifests = [run.read_manifest() for run in runs]
    for run, manifest in zip(runs, manifests, strict=True):
        _require_complete(run, manifest)
    for key, option in _SAME:
        _require_same(runs, [_config(run, m).get(key) for run, m in zip(runs, manifests, strict=True)], option)
    config = _config(runs[0], manifests[0])
    cells = _cells(zip(runs, manifests, strict=True))
    notes = tuple(note for run, m in zip(runs, manifests, strict=True) for note in _notes(run, m))
    return Results(tuple(runs), str(config.get("protocol")), str(config.get("lane")), cells, notes)


def _notes(run: RunFolder, manifest: Mapping[str, Any]) -> Iterator[str]:
    compared = manifest.get("compare")
    if compared is not None and compared["decision"] != "complete":
        yield (
            f"{run.path}: a comparison that stopped after {compared['looks'][-1]['num_scored']:,} of "
            f"{compared['num_participants']:,} participants, drawn at random from every study; the intervals here do not "
            "allow for when it stopped, that of psyfast compare does"
        )


def _config(run: RunFolder, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    config = manifest.get("config")
    if not isinstance(config, dict):
        raise RunError(f"{run.manifest_path}: has no 'config', expected the manifest of a psyfast run; was it edited?")
    return config


def _require_complete(run: RunFolder, manifest: Mapping[str, Any]) -> None:
    status = manifest.get("status")
    if status != "complete":
        left = manifest.get("unfinished") or []
        command = "compare" if "compare" in manifest else "score"
        models = f" (unfinished: {', '.join(left)})" if left else ""
        raise RunError(
            f"{run.path}: its status is '{status}', expected 'complete'{models}; psyfast {command} --resume finishes it"
        )


def _require_same(runs: Sequence[RunFolder], values: Sequence[object], option: str) -> None:
    for run, value in zip(runs, values, strict=True):
        if value != values[0]:
            raise RunError(
                f"{run.path}: was made with {option} {value}, and {runs[0].path} with {option} {values[0]}; "
                "compare runs of one kind"
            )


def _cells(runs: Iterable[tuple[RunFolder, Mapping[str, Any]]]) -> tuple[Cell, ...]:
    names: dict[str, dict[str, None]] = {}
    parts: dict[tuple[str, str], list[Part]] = {}
    weights: dict[str, tuple[RunFolder, object]] = {}
    for run, manifest in runs:
        for model, condition in _listed(run, manifest):
            name = manifest["models"][model].get("name")
            _require_same_weights(weights, run, model, manifest["models"][model].get("weights_sha256"))
            names.setdefault(model, {model: None}).update({str(name): None} if name else {})
            parts.setdefault((model, condition), []).append(_part(run, manifest, model, condition))
    return tuple(
        Cell(model, condition, tuple(names[model]), tuple(parts[model, condition]))
        for model, condition in sorted(parts)
    )


def _require_same_weights(
    weights: dict[str, tuple[RunFolder, object]], run: RunFolder, model: str, sha256: object
) -> None:
    """RunError where two runs call other weights by one model_id: they would be read as one model."""
    first, known = weights.setdefault(model, (run, sha256))
    if sha256 != known:
        raise RunError(
            f"{run.path}: its model {model} has the weights {sha256}, and that of {first.path} {known}; "
            "metrics of both at once need other folder names"
        )


def _listed(run: RunFolder, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    models, conditions = manifest.get("models"), _config(run, manifest).get("conditions") or ("plain",)
    if not isinstance(models, dict) or not models:
        raise RunError(f"{run.manifest_path}: lists no models, expected those that were scored; was it edited?")
    yield from ((model, condition) for model in models for condition in conditions)


def _part(run: RunFolder, manifest: Mapping[str, Any], model: str, condition: str) -> Part:
    paths = _part_files(run, model, condition)
    records = {path: read_part_record(path) for path in paths}
    missing = _first_gap(list(records.values()), num_transcripts_of(manifest))
    if missing is not None:
        raise RunError(
            f"{run.path}: model {model}, condition {condition} lacks the transcripts from number {missing} on, although "
            "the manifest calls the run complete; were files removed? psyfast score --resume makes them again"
        )
    return Part(run.path, tuple(sorted(paths, key=lambda path: records[path].transcript_start)))


def _part_files(run: RunFolder, model: str, condition: str) -> list[Path]:
    """A cell's files. Hive-style folders hold names as they are or percent-encoded (`history=3`, `history%3D3`)."""
    responses = run.path / "responses"
    spelled = {
        name: responses / f"model={model}" / f"condition={name}" for name in (condition, quote(condition, safe=""))
    }
    found = [paths for folder in spelled.values() if (paths := sorted(folder.glob("part-*.parquet")))]
    if len(found) > 1:
        raise RunError(
            f"{responses}: condition {condition} of model {model} lies there twice, in {found[0][0].parent.name} and in "
            f"{found[1][0].parent.name}; remove the one that is not meant"
        )
    return found[0] if found else []


def _first_gap(records: Sequence[PartRecord], num_transcripts: int) -> int | None:
    """The first transcript that no part covers; None where all are."""
    reached = 0
    for record in sorted(records, key=lambda record: record.transcript_start):
        if record.transcript_start > reached:
            break
        reached = max(reached, record.transcript_stop)
    return reached if reached < num_transcripts else None
