"""What a condition makes of a transcript: texts, and where the source's responses stand in them.

    source       You win if you press A. ␤You press <<A>>.␤You press <<B>>.␤
    plain        one text, the source                      response 0 at 38–39, response 1 at 56–57
    no-history   two texts, each with one of the responses: You win if … ␤You press <<A>>.   You win if … ␤You press <<B>>.

A response keeps its number whatever a condition does, and is scored in one text at most.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from psyfast.data.options import usable_sets
from psyfast.data.records import Transcript
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, find_responses, trimmed_span
from psyfast.errors import UsageError

UNMARKED = ("unmarked",)


@dataclass(frozen=True)
class RenderedResponse:
    """A source response where a rendered text has it: `text[char_start:char_stop]`, without markers.

    unbalanced: a `<<` without a partner. is_scored: False where it is only the past of other responses. options: its
    choice set as this text spells it, in the source's order; options_uncertain: the text never names it. close: the
    text directly after it that ends it. flags: what the condition has to say of it.
    """

    response_idx: int
    char_start: int
    char_stop: int
    unbalanced: bool = False
    is_scored: bool = True
    options: tuple[str, ...] | None = None
    options_uncertain: bool = False
    close: str = CLOSE_MARKER
    flags: tuple[str, ...] = ()

    def trimmed(self, text: str) -> tuple[int, int]:
        """The span without white space at its edges; (start, start) of the span where nothing is left."""
        return trimmed_span(text, self.char_start, self.char_stop)


@dataclass(frozen=True)
class Turns:
    """A chat template's text between a user's and the assistant's content (open), and after the latter (close)."""

    open: str
    close: str


@dataclass(frozen=True)
class RenderedText:
    """A text that a model reads, and its responses in order. turns: set where a chat template made it."""

    text: str
    responses: tuple[RenderedResponse, ...]
    turns: Turns | None = None


@dataclass(frozen=True)
class Rendering:
    """A transcript under a condition.

    unscored: flags of the responses that no text scores, those of whom nothing is said are `unmarked`. details: what
    transcripts.parquet is to say of it, as JSON takes it.
    """

    texts: tuple[RenderedText, ...]
    unscored: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def flags_of_unscored(self, response_idx: int) -> tuple[str, ...]:
        """Why a response stands in no text."""
        return self.unscored.get(response_idx, UNMARKED)


@dataclass(frozen=True)
class LeftOut:
    """A transcript that does not take part in a condition; reason: one or a few words, as `no_persona`."""

    reason: str


Piece = str | tuple[int, int]
"""Text that a condition adds, or a span of the source text, (char_start, char_stop)."""


class Source:
    """A transcript's text with its responses found, from which a condition cuts what it shows.

    option_sets: the choice set of each response, in the source's letters; uncertain: those never named in the text.
    """

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript
        self.responses = find_responses(transcript.text).responses
        self.option_sets = usable_sets(transcript.options, len(self.responses))
        self.uncertain = frozenset(transcript.uncertain_options)
        self._opened = [source.char_start - len(OPEN_MARKER) for source in self.responses]

    def whole(self) -> RenderedText:
        """The source text, every response marked."""
        return self.join([(0, len(self.transcript.text))])

    def _end(self, response_idx: int) -> int:
        """Where a response ends in the source, its close marker included."""
        source = self.responses[response_idx]
        return source.char_stop + (0 if source.unbalanced else len(CLOSE_MARKER))

    def join(
        self, pieces: Iterable[Piece], *, scored: Container[int] | None = None, unmarked: Container[int] = ()
    ) -> RenderedText:
        """A text of added strings and spans of the source; the responses in the spans go with them.

        scored: indices of the responses to score, None for all. unmarked: of those whose markers are left away.
        Raises UsageError where a span leaves the text or cuts a response off its markers.
        """
        growing = _Growing(self.transcript.text)
        for piece in pieces:
            if isinstance(piece, str):
                growing.add(piece)
                continue
            start, stop = piece
            if not 0 <= start <= stop <= len(self.transcript.text):
                raise UsageError(
                    f"the span {start} to {stop} of participant '{self.transcript.participant}' is none of its text, "
                    f"which has {len(self.transcript.text)} characters"
                )
            before = bisect_left(self._opened, start) - 1
            if before >= 0 and self._end(before) > start:
                raise UsageError(
                    f"the span {start} to {stop} of participant '{self.transcript.participant}' begins inside response "
                    f"{before}, which ends at {self._end(before)}; keep a response and its markers whole"
                )
            for response_idx in range(bisect_left(self._opened, start), bisect_left(self._opened, stop)):
                source = self.responses[response_idx]
                if self._end(response_idx) > stop:
                    raise UsageError(
                        f"the span {start} to {stop} of participant '{self.transcript.participant}' cuts response "
                        f"{response_idx}, which ends at {self._end(response_idx)}; keep a response and its markers whole"
                    )
                is_marked = response_idx not in unmarked
                growing.copy(start, source.char_start if is_marked else self._opened[response_idx])
                place = growing.copy(source.char_start, source.char_stop)
                start = source.char_stop
                if is_marked:
                    growing.responses.append(
                        RenderedResponse(
                            response_idx,
                            *place,
                            unbalanced=source.unbalanced,
                            is_scored=scored is None or response_idx in scored,
                            options=self.option_sets[response_idx],
                            options_uncertain=response_idx in self.uncertain,
                        )
                    )
                elif not source.unbalanced:
                    start += len(CLOSE_MARKER)
            growing.copy(start, stop)
        return RenderedText("".join(growing.parts), tuple(growing.responses))


class _Growing:
    """A rendered text in the making."""

    def __init__(self, source_text: str) -> None:
        self.parts: list[str] = []
        self.responses: list[RenderedResponse] = []
        self._source_text, self._length = source_text, 0

    def add(self, text: str) -> tuple[int, int]:
        """Add a text and return where it stands."""
        self.parts.append(text)
        self._length += len(text)
        return self._length - len(text), self._length

    def copy(self, start: int, stop: int) -> tuple[int, int]:
        """Add a span of the source."""
        return self.add(self._source_text[start:stop])
