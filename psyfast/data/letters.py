"""Where a text names an option by its letter or word, and where the same letter is something else.

Box A contains coins. Press A or B.        names A three times: after `Box` and `Press`, which name options
A coin is drawn. I would take a look.      names none: an article, a pronoun, an article
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from psyfast.data.responses import SourceResponse

WORD_LETTERS = frozenset("AIa")
"""Letters that are words of English."""

# fmt: off
_NO_NAMES = frozenset((
    "a", "an", "the", "and", "or", "but", "nor", "than", "that", "if", "when", "as", "because", "so", "then",
    "where", "while", "which", "who", "is", "was", "are", "were", "be", "been", "i", "you", "he", "she", "it",
    "we", "they", "to", "of", "in", "on", "at", "by", "for", "from", "with", "not", "no",
))
# fmt: on
"""Words that precede an article or a pronoun as well as an option: they name none."""

_WORD_BEFORE = re.compile(r"(\w+)[^\w\n]{0,2}\s*$")
_REACH = 60
"""Characters that are looked back for the word before."""


def without_responses(text: str, responses: Sequence[SourceResponse]) -> str:
    """The text with every character between markers as a space: what is said of the options, position by position."""
    parts, start = [], 0
    for response in responses:
        parts += [text[start : response.char_start], " " * (response.char_stop - response.char_start)]
        start = response.char_stop
    return "".join([*parts, text[start:]])


def single_letters(options: Iterable[str]) -> frozenset[str]:
    """The options that are one letter each."""
    return frozenset(option for option in options if len(option) == 1 and option.isalpha())


@lru_cache(maxsize=1024)
def standing_alone(labels: frozenset[str]) -> re.Pattern[str]:
    """Finds labels where no letter, digit or accent touches them; of two at one place the longer."""
    longest_first = sorted(labels, key=lambda label: (-len(label), label))
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?![\w\u0300-\u036f])")


def naming_words(text: str, responses: Sequence[SourceResponse], letters: frozenset[str]) -> frozenset[str]:
    """Words that name an option, in lower case: those directly before one of the letters, or before a response of it.

    Letters that are words (A, I, a) do not say so themselves, in the text outside of responses.
    """
    found = set()
    plain = letters - WORD_LETTERS
    outside = without_responses(text, responses)
    places = [match.start() for match in standing_alone(plain).finditer(outside)] if plain else []
    places += [r.char_start - 2 for r in responses if text[r.char_start : r.char_stop].strip() in letters]
    for place in places:
        before = word_before(outside, place)
        if before is not None:
            found.add(before.lower())
    return frozenset(found - _NO_NAMES - {letter.lower() for letter in letters})


def word_before(text: str, place: int) -> str | None:
    """The word before a place, a sign or two (a quote, a comma) between them aside; None where there is none."""
    found = _WORD_BEFORE.search(text[max(0, place - _REACH) : place])
    return found.group(1) if found else None


def stands_as_word(text: str, place: int, letters: frozenset[str], naming: frozenset[str]) -> bool:
    """Whether A, I or a at a place is an article or a pronoun: before a lower-case word, and not named as an option.

    It is named by a naming word before it, and in a list: next to `and`, `or` or a comma that another letter precedes
    or follows.
    """
    if text[place] not in WORD_LETTERS:
        return False
    after = re.compile(r"[^\S\n]+([^\W\d_]+)(?:[^\S\n]+['\"‘“]?(\w+))?").match(text, place + 1)
    if after is None or not after.group(1)[0].islower():
        return False
    if after.group(1) in ("and", "or") and after.group(2) in letters:
        return False
    before = text[max(0, place - _REACH) : place]
    listed = re.search(r"(?<!\w)(\w)['\"’”]?(?:,|,?[^\S\n]+(?:and|or))[^\S\n]+['\"‘“]?$", before)
    if listed is not None and listed.group(1) in letters:
        return False
    word = re.search(r"(\w+)[^\S\n]+$", before)
    return word is None or word.group(1).lower() not in naming
