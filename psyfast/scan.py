"""The first pass over the data: every row checked and counted, every condition tried, the run's tables written.

A broken line, a template that loses a response or a condition in which nobody takes part is found before hours of
scoring and not after.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.data.conditions.condition import Condition, Setting
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.rendering import LeftOut, RenderedResponse, Rendering
from psyfast.data.transcripts import ReadReport, TranscriptReader
from psyfast.errors import DataError
from psyfast.rows import participant_row, transcript_digest
from psyfast.store.run_folder import RunFolder, streamed_table, table_says
from psyfast.store.schema import TRANSCRIPTS, participants_schema

AddRow = Callable[[Mapping[str, Any]], None]
RenderingKey = tuple[str, str | None]
"""A condition's name, and the chat template that it was rendered under, by its hash."""

RENDERINGS = "renderings"


@dataclass
class RenderingCount:
    """A condition over all transcripts: who takes part, who does not by reason, and what identifies its texts.

    is_own: it is a function of the user's.
    """

    is_own: bool = False
    num_transcripts: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, transcript: Transcript, rendering: Rendering | LeftOut) -> None:
        """Count a transcript."""
        if isinstance(rendering, LeftOut):
            self.left_out[rendering.reason] += 1
            said: Any = rendering.reason
        else:
            self.num_transcripts += 1
            said = [[text.text, [_place(response) for response in text.responses]] for text in rendering.texts]
        self.digest.update(json.dumps([transcript.key, said]).encode())

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            "num_transcripts": self.num_transcripts,
            "left_out": dict(sorted(self.left_out.items())),
            "sha256": self.digest.hexdigest(),
            "is_own": self.is_own,
        }


@dataclass(frozen=True)
class Scan:
    """What the pass found. longest: the transcript with the most characters."""

    report: ReadReport
    num_transcripts: int
    num_responses: int
    num_chars: int
    digests: bytes
    longest: Transcript
    renderings: Mapping[RenderingKey, RenderingCount]

    def to_dict(self) -> dict[str, Any]:
        """The manifest's `data`; its sha256 is that of all transcripts' digests, in order."""
        return {
            "sha256": hashlib.sha256(self.digests).hexdigest(),
            "files": [asdict(file) for file in self.report.files],
            "rows_read": self.report.rows_read,
            "skipped": [asdict(row) for row in self.report.skipped],
            "passed_over": list(self.report.passed_over),
            "num_filtered": self.report.num_filtered,
            "num_outside_subset": self.report.num_outside_subset,
            "too_small_for_subset": list(self.report.too_small),
            "warnings": dict(self.report.warnings),
            "num_transcripts": self.num_transcripts,
            "num_responses": self.num_responses,
            "num_chars": self.num_chars,
        }

    def conditions(self) -> dict[str, Any]:
        """The manifest's `conditions`: by name; those that depend on a chat template also by its hash."""
        found: dict[str, Any] = {}
        for (name, template), count in self.renderings.items():
            if template is None:
                found[name] = count.to_dict()
            else:
                found.setdefault(name, {}).setdefault("by_template", {})[template] = count.to_dict()
        return found


def _place(response: RenderedResponse) -> list[Any]:
    return [response.response_idx, response.char_start, response.char_stop, response.is_scored, response.options]


def scan_transcripts(
    reader: TranscriptReader,
    renderer: Renderer,
    templates: Sequence[ChatTemplate],
    run: RunFolder,
    *,
    write: bool = True,
) -> Scan:
    """Read everything once; with write=True, what the run's tables lack is written.

    templates: of the run's models, each once. Raises DataError where there is nothing to score.
    """
    keys = _keys(renderer, templates)
    counts = {key: RenderingCount(condition.is_own) for key, (condition, _) in keys.items()}
    num_transcripts = num_responses = num_chars = 0
    digests = bytearray()
    longest: Transcript | None = None
    with ExitStack() as stack:
        add_participant, add_text, to_write = _tables(run, list(keys) if write else [], stack)
        for transcript in reader:
            num_transcripts += 1
            num_responses += transcript.num_responses
            num_chars += len(transcript.text)
            digests += transcript_digest(transcript)
            if longest is None or len(transcript.text) > len(longest.text):
                longest = transcript
            add_participant(participant_row(transcript))
            for key, (condition, setting) in keys.items():
                rendering = condition.render(transcript, setting)
                counts[key].add(transcript, rendering)
                if key in to_write and isinstance(rendering, Rendering):
                    for row in _text_rows(transcript, key, rendering):
                        add_text(row)
        if longest is None or not num_responses:
            raise DataError(
                f"{num_transcripts} transcripts were read and none marks a response; responses stand like <<this>>"
            )
        for (name, _), count in counts.items():
            if not count.num_transcripts:
                reasons = ", ".join(f"{reason}: {number}" for reason, number in sorted(count.left_out.items()))
                raise DataError(
                    f"no transcript takes part in the condition '{name}' ({reasons}); leave it out, or see "
                    "docs/conditions.md for what it needs"
                )
    return Scan(reader.report, num_transcripts, num_responses, num_chars, bytes(digests), longest, counts)


def _keys(renderer: Renderer, templates: Sequence[ChatTemplate]) -> dict[RenderingKey, tuple[Condition, Setting]]:
    """Every rendering that the run has texts of, with its setting."""
    keys: dict[RenderingKey, tuple[Condition, Setting]] = {}
    for condition in renderer.conditions:
        if condition.needs_template:
            for template in templates:
                keys[condition.name, template.sha256] = (condition, replace(renderer.setting, template=template))
        else:
            keys[condition.name, None] = (condition, renderer.setting)
    return keys


def _tables(
    run: RunFolder, keys: Sequence[RenderingKey], stack: ExitStack
) -> tuple[AddRow, AddRow, frozenset[RenderingKey]]:
    """Functions that add a row to the participants' and the texts' table, and the renderings that the latter lacks.

    keys: the renderings that the run is to have; without any, nothing is written.
    """
    add_participant: AddRow = _nowhere
    add_text: AddRow = _nowhere
    if keys and not run.participants_path.is_file():
        schema = participants_schema(PERSONA_FIELDS)
        add_participant = stack.enter_context(streamed_table(run.participants_path, schema))
    written = table_says(run.transcripts_path, RENDERINGS)
    known = {(name, template) for name, template in json.loads(written)} if written else set()
    if written is None and run.transcripts_path.is_file():  # from before there were conditions: the plain texts
        known = {("plain", None)} - set(keys)
    to_write = frozenset(keys) - known
    if to_write:
        extra = {RENDERINGS: json.dumps(sorted({*known, *to_write}, key=str))}
        table = streamed_table(run.transcripts_path, TRANSCRIPTS, extra=extra, keep=bool(known))
        add_text = stack.enter_context(table)
    return add_participant, add_text, to_write


def _text_rows(transcript: Transcript, key: RenderingKey, rendering: Rendering) -> Iterator[dict[str, Any]]:
    study, experiment, participant = transcript.key
    for text_idx, text in enumerate(rendering.texts):
        yield {
            "study": study,
            "experiment": experiment,
            "participant": participant,
            "condition": key[0],
            "template_sha256": key[1],
            "text_idx": text_idx,
            "text": text.text,
            "details": json.dumps(dict(rendering.details)) if rendering.details else None,
        }


def _nowhere(row: Mapping[str, Any]) -> None:
    """Where rows go that are on disk already."""
