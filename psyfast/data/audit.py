"""Where the `paper` and the `exact` protocol differ under one tokenizer, a response at a time.

No model is needed: which responses are found, merged with later text, cut or missed is decided by text and tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from psyfast.data.conditions.plain import plain
from psyfast.data.encoded import Encoded, Limits
from psyfast.data.exact import encode_exact
from psyfast.data.paper import PaperScan, encode_paper, scan_text
from psyfast.data.records import Transcript
from psyfast.data.rendering import RenderedResponse
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, find_responses
from psyfast.data.tokenizer import Encoding, Int32Array, Tokenizer
from psyfast.data.workers import map_in_order

CONTEXT_CHARS, RESPONSE_CHARS, EXAMPLE_TOKENS = 22, 60, 16
"""What an example shows: text on either side of the response, of the response itself, and tokens, at most."""

EXAMPLE_KINDS = {
    "paper": ("missed", "runs_on", "truncated", "past_context"),
    "exact": ("straddles", "truncated", "unbalanced_marker", "unscorable_first_token", "empty"),
}
"""Flags that examples are shown for, by protocol; the first of them that a response has."""


@dataclass(frozen=True)
class AuditExample:
    """One response that a protocol does not simply score.

    context: the source text around it, its markers included. tokens: the first tokens there, as the vocabulary spells
    them; those that the protocol scores for it are [scored_start, scored_stop) of them, both None where it scores none.
    num_swallowed: responses that lie inside its run-on span.
    """

    protocol: str
    kind: str
    study: str
    experiment: str
    participant: str
    response_idx: int
    response: str
    context: str
    tokens: tuple[str, ...]
    scored_start: int | None
    scored_stop: int | None
    num_swallowed: int = 0


@dataclass(frozen=True)
class StudyAudit:
    """Counts of one study; by protocol: how many responses are scored, and how many carry which flag.

    num_swallowed: responses inside the run-on span of another (paper), part of its `missed`.
    """

    study: str
    num_transcripts: int
    num_responses: int
    num_stray_closers: int
    num_scored: Mapping[str, int]
    flags: Mapping[str, Mapping[str, int]]
    num_swallowed: int
    examples: tuple[AuditExample, ...]


@dataclass(frozen=True)
class AuditReport:
    """What an audit found, study by study in the order of the data."""

    tokenizer_sha256: str
    context_limit: int | None
    studies: tuple[StudyAudit, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; `psyfast.report.audit_table` renders this form."""
        return asdict(self)


@dataclass(frozen=True)
class _TranscriptAudit:
    study: str
    num_responses: int
    num_stray_closers: int
    num_scored: Counter[str]
    flags: Mapping[str, Counter[str]]
    num_swallowed: int
    examples: tuple[AuditExample, ...]


def audit(
    transcripts: Iterable[Transcript],
    tokenizer: Tokenizer,
    context_limit: int | None = None,
    *,
    num_examples: int = 2,
    num_workers: int = 0,
) -> AuditReport:
    """Encode transcripts under both protocols and count what happens to their responses.

    context_limit: the model's tokens, or those the user allows; None: no limit. num_examples: for each study, protocol
    and finding, at most.
    """
    work = partial(_audit_transcript, context_limit=context_limit, num_examples=num_examples)
    by_study: dict[str, list[_TranscriptAudit]] = {}
    for one in map_in_order(work, transcripts, tokenizer, num_workers):
        by_study.setdefault(one.study, []).append(one)
    studies = tuple(_study_audit(study, parts, num_examples) for study, parts in by_study.items())
    return AuditReport(tokenizer.sha256, context_limit, studies)


def _study_audit(study: str, parts: list[_TranscriptAudit], num_examples: int) -> StudyAudit:
    shown: Counter[tuple[str, str]] = Counter()
    examples = []
    for example in (example for part in parts for example in part.examples):
        shown[example.protocol, example.kind] += 1
        if shown[example.protocol, example.kind] <= num_examples:
            examples.append(example)
    flags: dict[str, Counter[str]] = {protocol: Counter() for protocol in EXAMPLE_KINDS}
    num_scored: Counter[str] = Counter()
    for part in parts:
        num_scored.update(part.num_scored)
        for protocol, counts in part.flags.items():
            flags[protocol].update(counts)
    return StudyAudit(
        study=study,
        num_transcripts=len(parts),
        num_responses=sum(part.num_responses for part in parts),
        num_stray_closers=sum(part.num_stray_closers for part in parts),
        num_scored={protocol: num_scored[protocol] for protocol in flags},
        flags={protocol: dict(sorted(counts.items())) for protocol, counts in flags.items()},
        num_swallowed=sum(part.num_swallowed for part in parts),
        examples=tuple(sorted(examples, key=_order_of)),
    )


def _order_of(example: AuditExample) -> tuple[int, int]:
    protocols = tuple(EXAMPLE_KINDS)
    return protocols.index(example.protocol), EXAMPLE_KINDS[example.protocol].index(example.kind)


@dataclass(frozen=True)
class _View:
    """A transcript as one protocol sees it. source_idx: the source character of each rendered one; None: the same."""

    protocol: str
    encoded: Encoded
    encoding: Encoding
    source_idx: Int32Array | None

    def tokens_around(self, char_start: int, char_stop: int) -> tuple[int, int]:
        """Tokens of a source span and two more on either side; none where the protocol never sees it."""
        if self.source_idx is not None:
            if char_start >= self.source_idx[-1]:
                return 0, 0
            char_start, char_stop = map(int, np.searchsorted(self.source_idx, [char_start, char_stop]))
        first, last = self.encoding.overlapping(char_start, char_stop)
        first = max(0, first - 2)
        return first, min(len(self.encoding.ids), last + 2, first + EXAMPLE_TOKENS)


def _audit_transcript(
    transcript: Transcript, tokenizer: Tokenizer, context_limit: int | None, num_examples: int
) -> _TranscriptAudit:
    limits = Limits(context_limit)
    rendered = plain(transcript)
    scan = scan_text(rendered, tokenizer)
    views = (
        _View("paper", encode_paper(rendered, tokenizer, limits), scan.encoding, scan.cleaned.source_idx),
        _View("exact", encode_exact(rendered, tokenizer, limits), tokenizer.encode(transcript.text), None),
    )
    swallowed = {response_idx: _num_swallowed(scan, response_idx) for response_idx in scan.spans}
    examples = []
    for view in views:
        for kind, response_idx in _shown(view, num_examples):
            num_swallowed = swallowed.get(response_idx, 0) if kind == "runs_on" else 0
            source = scan.responses[response_idx]
            examples.append(_example(view, kind, transcript, response_idx, source, tokenizer, num_swallowed))
    return _TranscriptAudit(
        study=transcript.study,
        num_responses=len(scan.responses),
        num_stray_closers=find_responses(transcript.text).num_stray_closers,
        num_scored=Counter({view.protocol: sum(r.is_scored for r in view.encoded.responses) for view in views}),
        flags={view.protocol: Counter(flag for r in view.encoded.responses for flag in r.flags) for view in views},
        num_swallowed=sum(swallowed.values()),
        examples=tuple(examples),
    )


def _num_swallowed(scan: PaperScan, response_idx: int) -> int:
    """Responses that begin inside the span of this one."""
    stop = scan.spans[response_idx].source_stop
    later = scan.responses[response_idx + 1 :]
    return sum(source.char_start <= stop and not scan.is_behind_cut(source) for source in later)


def _shown(view: _View, num_examples: int) -> Iterator[tuple[str, int]]:
    """Kind and index of the responses to show: the first num_examples of each kind."""
    kinds = EXAMPLE_KINDS[view.protocol]
    shown: Counter[str] = Counter()
    for tokens in view.encoded.responses:
        kind = next((kind for kind in kinds if kind in tokens.flags), None)
        if kind is not None and shown[kind] < num_examples:
            shown[kind] += 1
            yield kind, tokens.response_idx


def _example(
    view: _View,
    kind: str,
    transcript: Transcript,
    response_idx: int,
    source: RenderedResponse,
    tokenizer: Tokenizer,
    num_swallowed: int,
) -> AuditExample:
    text = transcript.text
    start = source.char_start - len(OPEN_MARKER)
    stop = source.char_stop if source.unbalanced else source.char_stop + len(CLOSE_MARKER)
    first, last = view.tokens_around(start, stop)
    scored = view.encoded.responses[response_idx]
    scored_start = scored_stop = None
    if scored.token_start is not None and scored.token_stop is not None:
        scored_start, scored_stop = scored.token_start - first, min(scored.token_stop, last) - first
    return AuditExample(
        protocol=view.protocol,
        kind=kind,
        study=transcript.study,
        experiment=transcript.experiment,
        participant=transcript.participant,
        response_idx=response_idx,
        response=text[source.char_start : source.char_stop],
        context=text[max(0, start - CONTEXT_CHARS) : min(stop, start + RESPONSE_CHARS) + CONTEXT_CHARS],
        tokens=tokenizer.token_strings(view.encoded.ids[first:last]),
        scored_start=scored_start,
        scored_stop=scored_stop,
        num_swallowed=num_swallowed,
    )
