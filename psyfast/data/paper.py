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

from psyfast.data.clean import CleanedText, clean, uncleaned
from psyfast.data.encoded import Encoded, Limits, OptionBranch, ResponseTokens
from psyfast.data.options import needs_terminator, option_flags
from psyfast.data.prefixes import PrefixEncoder
from psyfast.data.rendering import RenderedResponse, RenderedText, Turns
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER
from psyfast.data.splice import Splicer
from psyfast.data.tokenizer import Encoding, Tokenizer
from psyfast.errors import ModelError


@dataclass(frozen=True)
class Markers:
    """What the scan looks for. open, close: as the text has them; open_ids, close_ids: what is found in its ids."""

    open: str
    close: str
    open_ids: list[int]
    close_ids: list[int]
    is_template: bool

    def enclose(self, inner: str) -> str:
        """A response with its markers, cleaned where the study cleans."""
        text = self.open + inner + self.close
        return text if self.is_template else clean(text).text


@dataclass(frozen=True)
class PaperSpan:
    """What the scan takes for a response.

    char_start: in the cleaned text, directly after the open marker. source_stop: in the rendered text, where its last
    character ends. runs_on: it reaches past its response there.
    """

    token_start: int
    token_stop: int
    char_start: int
    source_stop: int
    runs_on: bool


@dataclass(frozen=True)
class PaperScan:
    """The scan of one text; spans by their place in `responses`, those without tokens too."""

    cleaned: CleanedText
    encoding: Encoding
    responses: tuple[RenderedResponse, ...]
    markers: Markers
    spans: dict[int, PaperSpan]
    num_unowned_spans: int

    def is_behind_cut(self, source: RenderedResponse) -> bool:
        """Whether the study never sees the response's open marker."""
        return source.char_start > self.cleaned.source_stop


def scan_text(rendered: RenderedText, tokenizer: Tokenizer, encoder: PrefixEncoder | None = None) -> PaperScan:
    """Clean, tokenise and scan a text; each span goes to the response that its first character lies in.

    What a chat template made was cleaned before, and brings its special tokens itself. encoder: of this and the texts
    before it.
    """
    responses = rendered.responses
    markers = _markers(tokenizer, rendered.turns)
    adds_special = rendered.turns is None
    cleaned = clean(rendered.text) if adds_special else uncleaned(rendered.text)
    encoding = (encoder or PrefixEncoder(tokenizer)).encode(cleaned.text, adds_special=adds_special)
    spans: dict[int, PaperSpan] = {}
    num_unowned = 0
    for token_start, token_stop in _scan(encoding.ids.tolist(), markers.open_ids, markers.close_ids):
        char_start = int(encoding.offsets[token_start - 1, 1])
        # Unmarked text before a response belongs to none, so the last one that begins at or before is the owner.
        place = int(cleaned.source_idx[char_start])
        owner = bisect_right(responses, place, key=attrgetter("char_start")) - 1
        if owner < 0 or owner in spans:
            num_unowned += 1
            continue
        char_stop = int(encoding.offsets[min(token_stop, encoding.first_suffix) - 1, 1])
        source_stop = int(cleaned.source_idx[char_stop - 1]) + 1 if token_stop > token_start else place
        source = responses[owner]
        runs_on = token_stop > token_start and (source.unbalanced or source_stop > source.char_stop)
        spans[owner] = PaperSpan(token_start, token_stop, char_start, source_stop, runs_on)
    return PaperScan(cleaned, encoding, responses, markers, spans, num_unowned)


def encode_paper(
    rendered: RenderedText, tokenizer: Tokenizer, limits: Limits, encoder: PrefixEncoder | None = None
) -> Encoded:
    """Encode a rendered text as the study does; rows keep the source's numbering. encoder: as for `scan_text`."""
    text = rendered.text
    scan = scan_text(rendered, tokenizer, encoder)
    places = [place for place, source in enumerate(scan.responses) if source.is_scored]
    responses = tuple(_response_tokens(place, text, scan, limits) for place in places)
    splicer = Splicer(scan.cleaned.text, scan.encoding, tokenizer, adds_special=rendered.turns is None)
    branches = [
        branch
        for place, tokens in zip(places, responses, strict=True)
        if tokens.is_scored
        for branch in _branches(place, text, scan, splicer)
    ]
    return Encoded(
        scan.encoding.ids,
        responses,
        tuple(branches),
        tuple(scan.responses[place].options for place in places),
        scan.cleaned.text,
        scan.num_unowned_spans,
    )


def _markers(tokenizer: Tokenizer, turns: Turns | None) -> Markers:
    """The study's markers: those of the text, or what a chat template puts around the assistant's content."""
    open_text, close_text = (" " + OPEN_MARKER, CLOSE_MARKER) if turns is None else (turns.open, turns.close)
    open_ids = tokenizer.encode_plain(open_text).ids.tolist()
    close_ids = tokenizer.encode_plain(close_text).ids.tolist()
    if not open_ids or not close_ids:
        raise ModelError(
            f"the tokenizer gives no tokens for the markers {open_text.strip()} and {close_text}; "
            "score with --protocol exact"
        )
    return Markers(OPEN_MARKER if turns is None else open_text, close_text, open_ids, close_ids, turns is not None)


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


def _response_tokens(place: int, text: str, scan: PaperScan, limits: Limits) -> ResponseTokens:
    source = scan.responses[place]
    response_idx = source.response_idx
    flags = {*source.flags, "unbalanced_marker"} if source.unbalanced else set(source.flags)
    span = scan.spans.get(place)
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
    flags |= option_flags(text[start:stop], source.options, uncertain=source.options_uncertain)
    return ResponseTokens(response_idx, span.token_start, span.token_stop, tuple(sorted(flags)))


def _branches(place: int, text: str, scan: PaperScan, splicer: Splicer) -> Iterator[OptionBranch]:
    """Branches of the options whose span the scan finds; none where the response itself runs on or is cut."""
    source, span, markers = scan.responses[place], scan.spans[place], scan.markers
    options = source.options
    opened = span.char_start - len(markers.open)
    is_cut = source.char_stop > scan.cleaned.source_stop
    if options is None or span.runs_on or is_cut or not scan.cleaned.text.startswith(markers.open, opened):
        return
    start, stop = source.trimmed(text)
    terminated = needs_terminator(options)
    for option_idx, option in enumerate(options):
        if option == text[start:stop] and not terminated:
            last = span.token_stop - 1
            own_ids = scan.encoding.ids[last : last + 1]
            yield OptionBranch(source.response_idx, option_idx, last, own_ids, span.token_start, span.token_stop)
            continue
        inner = text[source.char_start : start] + option + text[stop : source.char_stop]
        splice = splicer.replace(opened, markers.enclose(inner))
        found = _option_span(splice.tail, span.char_start - splice.char_offset, markers, terminated=terminated)
        if found is None:
            continue
        score_start, score_stop = splice.num_kept + found[0], splice.num_kept + found[1]
        branch_start, branch_ids = splice.cut(scan.encoding.ids, score_stop)
        yield OptionBranch(source.response_idx, option_idx, branch_start, branch_ids, score_start, score_stop)


def _option_span(encoding: Encoding, char_start: int, markers: Markers, *, terminated: bool) -> tuple[int, int] | None:
    """The scan's span directly after the open marker that ends at char_start; None where the scan does not find it."""
    open_ids, close_ids = markers.open_ids, markers.close_ids
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
