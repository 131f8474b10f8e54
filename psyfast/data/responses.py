"""Finding the marked responses of a transcript's source text (PROTOCOL 4, the pairing of markers).

    You press <<A>>. You win.  He said << nothing
              ^^   ^^                  ^^
              a response (its span is the text between), then an opening marker without a partner

The numbering found here is the one that every table uses: `response_idx` is the position in this list under every
protocol, condition, tokenizer and model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN_MARKER = "<<"
CLOSE_MARKER = ">>"

_MARKER = re.compile(r"<<|>>")


@dataclass(frozen=True)
class SourceResponse:
    """One `<<` of the source text.

    `char_start`, `char_stop` delimit the text between the markers; where the opening marker has no partner they are
    both the position after it and `unbalanced` is True.
    """

    char_start: int
    char_stop: int
    unbalanced: bool = False

    def trimmed(self, text: str) -> tuple[int, int]:
        """The span without white space at its edges; (start, start) of the span where nothing is left."""
        return trimmed_span(text, self.char_start, self.char_stop)


def trimmed_span(text: str, char_start: int, char_stop: int) -> tuple[int, int]:
    """A span without white space at its edges; (start, start) of the span where nothing is left."""
    inner = text[char_start:char_stop]
    kept = inner.strip()
    if not kept:
        return char_start, char_start
    lead = len(inner) - len(inner.lstrip())
    return char_start + lead, char_start + lead + len(kept)


@dataclass(frozen=True)
class MarkedText:
    """The responses of a text in order, and how many closing markers had no partner (they are text)."""

    responses: tuple[SourceResponse, ...]
    num_stray_closers: int


def find_responses(text: str) -> MarkedText:
    """Pair the markers of a text: a `<<` with the first `>>` after it if no other `<<` stands between them."""
    responses: list[SourceResponse] = []
    open_stop: int | None = None
    num_stray_closers = 0
    for marker in _MARKER.finditer(text):
        if marker.group() == OPEN_MARKER:
            if open_stop is not None:
                responses.append(SourceResponse(open_stop, open_stop, unbalanced=True))
            open_stop = marker.end()
        elif open_stop is None:
            num_stray_closers += 1
        else:
            responses.append(SourceResponse(open_stop, marker.start()))
            open_stop = None
    if open_stop is not None:
        responses.append(SourceResponse(open_stop, open_stop, unbalanced=True))
    return MarkedText(tuple(responses), num_stray_closers)
