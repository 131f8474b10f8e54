"""The `paper` protocol: responses found by the study's scan over token ids, faults included (PROTOCOL 2 and 3).

ids     … ␣<<  A  >> . You win. You press ␣<<  B  >>.  You lose. You press ␣<<  A  >>
scan      open A close                    open [B  >>.  You lose. You press ␣<<  A] close
                                                `>>.` is another token than `>>`: runs on, and swallows a response
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from psyfast.data.clean import CleanedText, clean
from psyfast.data.encoded import Encoded, Limits, OptionBranch, ResponseTokens
from psyfast.data.options import needs_terminator, option_flags, usable_sets
from psyfast.data.records import Transcript
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, MarkedText, SourceResponse, find_responses
from psyfast.data.splice import Splicer
from psyfast.data.tokenizer import Encoding, Tokenizer
from psyfast.errors import ModelError


@dataclass(frozen=True)
class PaperSpan:
    """What the scan takes for a response.

    char_start: in the cleaned text, directly after the open marker. source_stop: in the source text, where its last
    character ends. runs_on: it reaches past its source response.
    """

    token_start: int
    token_stop: int
    response_idx: int
    char_start: int
    source_stop: int
    runs_on: bool


@dataclass(frozen=True)
class PaperScan:
    """The scan of one text; spans by source response, those without tokens too."""

    cleaned: CleanedText
    encoding: Encoding
    marked: MarkedText
    spans: dict[int, PaperSpan]
    num_unowned_spans: int

    def is_behind_cut(self, source: SourceResponse) -> bool:
        """Whether the study never sees the response's open marker."""
        return source.char_start > self.cleaned.source_stop


def scan_text(text: str, tokenizer: Tokenizer) -> PaperScan:
    """Clean, tokenise and scan a source text; each span goes to the source response that its first character lies in."""
    marked, cleaned = find_responses(text), clean(text)
    encoding = tokenizer.encode(cleaned.text)
    open_ids, close_ids = _marker_ids(tokenizer)
    spans: dict[int, PaperSpan] = {}
    num_unowned = 0
    for token_start, token_stop in _scan(encoding.ids.tolist(), open_ids, close_ids):
        char_start = int(encoding.offsets[token_start - 1, 1])
        # Unmarked text before a response belongs to none, so the last one that begins at or before is the owner.
        place = int(cleaned.source_idx[char_start])
        owner = bisect_right(marked.responses, place, key=attrgetter("char_start")) - 1
        if owner < 0 or owner in spans:
            num_unowned += 1
            continue
        char_stop = int(encoding.offsets[min(token_stop, encoding.first_suffix) - 1, 1])
        source_stop = int(cleaned.source_idx[char_stop - 1]) + 1 if token_stop > token_start else place
        source = marked.responses[owner]
        runs_on = token_stop > token_start and (source.unbalanced or source_stop > source.char_stop)
        spans[owner] = PaperSpan(token_start, token_stop, owner, char_start, source_stop, runs_on)
    return PaperScan(cleaned, encoding, marked, spans, num_unowned)


def encode_paper(transcript: Transcript, tokenizer: Tokenizer, limits: Limits) -> Encoded:
    """Encode a transcript as the study does; rows keep the source's numbering."""
    text = transcript.text
    scan = scan_text(text, tokenizer)
    sources = scan.marked.responses
    option_sets = usable_sets(transcript.options, len(sources))
    uncertain = frozenset(transcript.uncertain_options)
    responses = tuple(
        _response_tokens(response_idx, text, scan, options, limits, uncertain=response_idx in uncertain)
        for response_idx, options in enumerate(option_sets)
    )
    splicer = Splicer(scan.cleaned.text, scan.encoding, tokenizer)
    markers = _marker_ids(tokenizer)
    branches = [
        branch
        for tokens, options in zip(responses, option_sets, strict=True)
        if options is not None and tokens.is_scored
        for branch in _branches(text, scan, scan.spans[tokens.response_idx], options, splicer, markers)
    ]
    return Encoded(
        scan.encoding.ids,
        responses,
        tuple(branches),
        option_sets,
        scan.cleaned.text,
        scan.marked.num_stray_closers,
        scan.num_unowned_spans,
    )


def _marker_ids(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    open_ids = tokenizer.encode_plain(" " + OPEN_MARKER).ids.tolist()
    close_ids = tokenizer.encode_plain(CLOSE_MARKER).ids.tolist()
    if not open_ids or not close_ids:
        raise ModelError("the tokenizer gives no tokens for the markers << and >>; score with --protocol exact")
    return open_ids, close_ids


def _scan(ids: Sequence[int], open_ids: Sequence[int], close_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Token spans between markers, left to right; one without a close marker ends with the sequence."""
    start = _find(ids, open_ids, 0)
    while start is not None:
        start += len(open_ids)
        stop = _find(ids, close_ids, start)
        if stop is None:
            yield start, len(ids)
            return
        yield start, stop
        start = _find(ids, open_ids, stop + len(close_ids))


def _find(ids: Sequence[int], wanted: Sequence[int], start: int) -> int | None:
    """First position from start on where the ids `wanted` stand; None where they do not."""
    try:
        while True:
            start = ids.index(wanted[0], start)
            if ids[start : start + len(wanted)] == wanted:
                return start
            start += 1
    except ValueError:
        return None


def _response_tokens(
    response_idx: int,
    text: str,
    scan: PaperScan,
    options: Sequence[str] | None,
    limits: Limits,
    *,
    uncertain: bool,
) -> ResponseTokens:
    source = scan.marked.responses[response_idx]
    flags = {"unbalanced_marker"} if source.unbalanced else set()
    span = scan.spans.get(response_idx)
    if max(source.char_start, source.char_stop) > scan.cleaned.source_stop:
        flags.add("truncated")
    if span is None or span.token_stop == span.token_start:
        if span is None and not scan.is_behind_cut(source):
            flags.add("missed")
        if span is not None or (not source.unbalanced and not text[source.char_start : source.char_stop].strip()):
            flags.add("empty")
        return ResponseTokens(response_idx, None, None, tuple(sorted(flags)))
    if span.runs_on:
        flags.add("runs_on")
    if limits.passed_by(span.token_stop):
        flags.add("past_context")
    start, stop = source.trimmed(text)
    flags |= option_flags(text[start:stop], options, uncertain=uncertain)
    return ResponseTokens(response_idx, span.token_start, span.token_stop, tuple(sorted(flags)))


def _branches(
    text: str,
    scan: PaperScan,
    span: PaperSpan,
    options: Sequence[str],
    splicer: Splicer,
    markers: tuple[Sequence[int], Sequence[int]],
) -> Iterator[OptionBranch]:
    """Branches of the options whose span the scan finds; none where the response itself runs on or is cut."""
    source = scan.marked.responses[span.response_idx]
    opened = span.char_start - len(OPEN_MARKER)
    is_cut = source.char_stop > scan.cleaned.source_stop
    if span.runs_on or is_cut or not scan.cleaned.text.startswith(OPEN_MARKER, opened):
        return
    start, stop = source.trimmed(text)
    terminated = needs_terminator(options)
    for option_idx, option in enumerate(options):
        if option == text[start:stop] and not terminated:
            last = span.token_stop - 1
            own_ids = scan.encoding.ids[last : last + 1]
            yield OptionBranch(span.response_idx, option_idx, last, own_ids, span.token_start, span.token_stop)
            continue
        inner = text[source.char_start : start] + option + text[stop : source.char_stop]
        splice = splicer.replace(opened, clean(OPEN_MARKER + inner + CLOSE_MARKER).text)
        found = _option_span(splice.tail, span.char_start - splice.char_offset, markers, terminated=terminated)
        if found is None:
            continue
        score_start, score_stop = splice.num_kept + found[0], splice.num_kept + found[1]
        branch_start, branch_ids = splice.cut(scan.encoding.ids, score_stop)
        yield OptionBranch(span.response_idx, option_idx, branch_start, branch_ids, score_start, score_stop)


def _option_span(
    encoding: Encoding, char_start: int, markers: tuple[Sequence[int], Sequence[int]], *, terminated: bool
) -> tuple[int, int] | None:
    """The scan's span directly after the open marker that ends at char_start; None where the scan does not find it."""
    open_ids, close_ids = markers
    ids = encoding.ids.tolist()
    for start in np.flatnonzero(encoding.offsets[:, 1] == char_start) + 1:
        if ids[max(0, start - len(open_ids)) : start] != open_ids:
            continue
        stop = _find(ids, close_ids, int(start))
        if stop is None:
            return None
        stop += 1 if terminated else 0
        return (int(start), stop) if stop > start else None
    return None
