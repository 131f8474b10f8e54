"""A run from end to end: check the data, write the manifest, score each model, close the manifest.

Two passes over the data: the first checks every row and writes the tables of participants and transcripts, so that a
broken line is found before hours of scoring and not after; the second scores, window by window.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch

import psyfast
from psyfast.config import ScoreConfig
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.transcripts import ReadReport, TranscriptReader
from psyfast.errors import DataError, RunError
from psyfast.inputs import Inputs
from psyfast.model.load.model import open_model
from psyfast.model_run import ModelRun, Spent, gaps
from psyfast.ops.peak import peak_of
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators, describe, resolve
from psyfast.process_memory import TOKENIZER_BYTES, peak_bytes, planned_memory
from psyfast.report.progress import OnProgress, peak_share_of
from psyfast.rows import participant_row, transcript_digest
from psyfast.store.manifest import command_line, library_versions, machine, require_same, require_same_data
from psyfast.store.run_folder import PartRecord, RunFolder, streamed_table
from psyfast.store.schema import TRANSCRIPTS, participants_schema

log = logging.getLogger(__name__)

AddRow = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Scan:
    """What the first pass over the data found. longest: the transcript with the most characters."""

    report: ReadReport
    num_transcripts: int
    num_responses: int
    num_chars: int
    digests: bytes
    longest: Transcript

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `data`; its sha256 is that of all transcripts' digests, in order."""
        return {
            "sha256": hashlib.sha256(self.digests).hexdigest(),
            "files": [asdict(file) for file in self.report.files],
            "rows_read": self.report.rows_read,
            "skipped": [asdict(row) for row in self.report.skipped],
            "passed_over": list(self.report.passed_over),
            "num_filtered": self.report.num_filtered,
            "warnings": dict(self.report.warnings),
            "num_transcripts": self.num_transcripts,
            "num_responses": self.num_responses,
            "num_chars": self.num_chars,
        }


def score_run(
    inputs: Inputs, *, on_progress: OnProgress | None = None, should_stop: Callable[[], bool] | None = None
) -> RunFolder:
    """Score transcripts under models into the run's folder.

    should_stop: asked after every part; where it says yes, `RunInterruptedError` is raised, and a resumed run goes on
    from there. Raises a PsyfastError for whatever a user can mend.
    """
    config = inputs.config
    if inputs.old is not None and "compare" in inputs.old:
        raise RunError(f"{inputs.run.path}: was made by psyfast compare; go on with psyfast compare --resume")
    operators = resolve(
        config.backend, config.device, Lane(config.lane), isa=config.isa, join_segments=config.join_segments
    )
    threads_before = torch.get_num_threads()
    if inputs.config.threads is not None:
        torch.set_num_threads(inputs.config.threads)
    try:
        # Configuration, headers and memory of every model, before a folder is made or a row is read.
        for place in inputs.located:
            planned_memory(inputs.config, operators, *open_model(place), still_to_load=TOKENIZER_BYTES)
        with inputs.run.locked():
            # Once more, now that nobody else writes: another process may have begun or ended meanwhile.
            if inputs.old is None:
                inputs.run.require_empty()
            else:
                inputs = replace(inputs, old=inputs.run.read_manifest())
            return _score_locked(inputs, operators, on_progress, should_stop)
    finally:
        torch.set_num_threads(threads_before)


def _score_locked(
    inputs: Inputs, operators: Operators, on_progress: OnProgress | None, should_stop: Callable[[], bool] | None
) -> RunFolder:
    config, run, old, repeat = inputs.config, inputs.run, inputs.old, inputs.repeat
    started = time.perf_counter()
    scan = scan_transcripts(inputs.reader, run, write=old is None or not run.has_tables())
    manifest = started_manifest(config, operators, scan, old)
    manifest["seconds"]["scan"] += time.perf_counter() - started
    if old is not None:
        require_same(old, manifest, f"{run.path}: cannot resume")
    else:
        run.write_manifest(manifest)
    if repeat is not None:
        require_same_data(repeat, manifest, f"{run.path}: cannot make the run again")
    log.info("%d transcripts, %d responses; %s", scan.num_transcripts, scan.num_responses, describe(operators))
    peak = manifest["peak"]["gflop_per_s"]
    spent = Spent()
    for model_idx, place in enumerate(inputs.located):
        position = (model_idx, len(inputs.located))
        recorded = (repeat or manifest)["models"].get(place.model_id)
        with closing(
            ModelRun(
                config,
                operators,
                place,
                run,
                inputs.reader,
                scan.digests,
                scan.num_chars,
                scan.longest,
                position,
                peak,
            )
        ) as model_run:
            # Only a model that opened, and is the one that the run had, enters the manifest of a run that is resumed.
            manifest["models"][place.model_id] = model_run.open(recorded)
            manifest["config"]["models"] = [entry["name"] for entry in manifest["models"].values()]
            run.write_manifest(manifest)
            model_run.score(on_progress, should_stop)
        spent = spent.plus(model_run.spent.required, model_run.spent.seconds)
    manifest["peak"].update(share_of_peak(spent, peak))
    close_manifest(manifest, run, config, scan.num_transcripts)
    run.write_manifest(manifest)
    return run


def scan_transcripts(reader: TranscriptReader, run: RunFolder, *, write: bool) -> Scan:
    """Read everything once: every row is checked, counted and, with write=True, put into the run's tables."""
    num_transcripts = num_responses = num_chars = 0
    digests = bytearray()
    longest: Transcript | None = None
    with ExitStack() as stack:
        add_participant: AddRow = _nowhere
        add_transcript: AddRow = _nowhere
        if write:
            schema = participants_schema(PERSONA_FIELDS)
            add_participant = stack.enter_context(streamed_table(run.participants_path, schema))
            add_transcript = stack.enter_context(streamed_table(run.transcripts_path, TRANSCRIPTS))
        for transcript in reader:
            num_transcripts += 1
            num_responses += transcript.num_responses
            num_chars += len(transcript.text)
            digests += transcript_digest(transcript)
            if longest is None or len(transcript.text) > len(longest.text):
                longest = transcript
            add_participant(participant_row(transcript))
            add_transcript(_transcript_row(transcript))
        if longest is None or not num_responses:
            raise DataError(
                f"{num_transcripts} transcripts were read and none marks a response; responses stand like <<this>>"
            )
    return Scan(reader.report, num_transcripts, num_responses, num_chars, bytes(digests), longest)


def _nowhere(row: Mapping[str, Any]) -> None:
    """Where rows go that are on disk already."""


def _transcript_row(transcript: Transcript) -> dict[str, Any]:
    study, experiment, participant = transcript.key
    return {
        "study": study,
        "experiment": experiment,
        "participant": participant,
        "condition": "plain",
        "text": transcript.text,
    }


def started_manifest(
    config: ScoreConfig, operators: Operators, scan: Scan, old: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The manifest at the start; a resumed run keeps what it has and adds a session."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    session = {
        "command": command_line(),
        "started": now,
        "psyfast": psyfast.__version__,
        "libraries": library_versions(),
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "peak": {"gflop_per_s": peak_of(operators)},
    }
    started = (
        {
            "models": dict(old["models"]),
            "started": old["started"],
            "sessions": [*old["sessions"], session],
            "seconds": {"scan": old["seconds"]["scan"]},
        }
        if old
        else {"models": {}, "started": now, "sessions": [session], "seconds": {"scan": 0.0}}
    )
    return {
        **(old or {}),
        **session,
        **started,
        "status": "running",
        "config": config.to_dict(),
        "arithmetic": {**describe(operators), "threads": torch.get_num_threads()},
        "data": scan.to_dict(),
    }


def share_of_peak(spent: Spent, peak: float | None) -> dict[str, float | None]:
    """What this session's windows required (see psyfast.plan.flops), and how near the engine came to the peak."""
    return {
        "required_gflop": spent.required.total / 1e9,
        "spared_gflop": spent.required.spared / 1e9,
        "engine_seconds": spent.seconds,
        "share": peak_share_of(spent.required.total, spent.seconds, peak),
    }


def close_manifest(manifest: dict[str, Any], run: RunFolder, config: ScoreConfig, num_transcripts: int) -> None:
    """Totals over all parts, whoever wrote them; `partial` where an earlier session left a model unfinished."""
    seconds: Counter[str] = Counter()
    flags: dict[str, dict[str, dict[str, int]]] = {}
    tokens: dict[str, dict[str, dict[str, int]]] = {}
    unfinished: list[str] = []
    for model_id in manifest["models"]:
        for condition in config.conditions:
            parts = run.finished_parts(model_id, condition)
            for part in parts:
                seconds.update(part.seconds)
            flags.setdefault(model_id, {})[condition] = _sum(part.flags for part in parts)
            tokens.setdefault(model_id, {})[condition] = _token_counts(parts)
            if any(start < (stop or num_transcripts) for _, start, stop in gaps(parts)):
                unfinished.append(model_id)
    finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
    status = "partial" if unfinished else "complete"
    manifest.update(status=status, unfinished=unfinished, finished=finished, flags=flags, tokens=tokens)
    manifest["peak_rss_bytes"] = peak_bytes()
    manifest["seconds"] = {"scan": manifest["seconds"]["scan"], **seconds}


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _token_counts(parts: Sequence[PartRecord]) -> dict[str, int]:
    return {
        "total": sum(part.num_tokens for part in parts),
        "unique": sum(part.num_unique_tokens for part in parts),
        "scored_rows": sum(part.num_scored_rows for part in parts),
    }
