"""The words around a response: what tells a place of the task where it can be given from another.

You choose <<H>> and arrive at planet 2. There you choose <<M>>.
before: ("You", "choose")  after: "and"                   before: ("you", "choose")  after: ""
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, SourceResponse

NUM_WORDS_BEFORE = 2

# An earlier response counts as one word, whatever was answered: what a place is called never depends on an answer.
_WORD = re.compile(r"<<(?:(?!<<|>>).)*>>|\w+(?:['’\-]\w+)*", re.DOTALL)
_WORD_AFTER = re.compile(r"[^\S\n]+(\w+(?:['’\-]\w+)*)")
_REACH = 400
"""Characters before a marker that are searched for its words; a longer piece without a word is no sentence."""


def words_before(text: str, response: SourceResponse) -> tuple[str, ...]:
    """The last two words before a response's open marker; fewer at the beginning of the text."""
    stop = response.char_start - len(OPEN_MARKER)
    near = text[max(0, stop - _REACH) : stop]
    opened, closed = near.find(OPEN_MARKER), near.find(CLOSE_MARKER)
    if closed >= 0 and not 0 <= opened < closed:  # begins inside a long answer
        near = OPEN_MARKER + near[closed:]
    found = _WORD.findall(near)[-NUM_WORDS_BEFORE:]
    return tuple(OPEN_MARKER + CLOSE_MARKER if word.startswith(OPEN_MARKER) else word for word in found)


def word_after(text: str, response: SourceResponse) -> str:
    """The word directly after a response's close marker, on its line; "" where a sign or the line's end comes first."""
    if response.unbalanced:
        return ""
    found = _WORD_AFTER.match(text, response.char_stop + len(CLOSE_MARKER))
    return found.group(1) if found else ""


def surroundings(text: str, responses: Sequence[SourceResponse]) -> list[tuple[tuple[str, ...], str]]:
    """(words before, word after) of each response."""
    return [(words_before(text, response), word_after(text, response)) for response in responses]
