"""Other letters for the options of a transcript (PROTOCOL 7, last paragraph), or why it cannot have any.

    Press J or F. You press <<J>>.        {J: F, F: J}        Press F or J. You press <<F>>.

A letter is put in the place of a letter, so every character span of the source is that of the rewritten text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from psyfast.data.auto_options import find_option_sets
from psyfast.data.letters import WORD_LETTERS, naming_words, single_letters, standing_alone, stands_as_word
from psyfast.data.records import Transcript
from psyfast.data.responses import find_responses
from psyfast.errors import UsageError

RefusalReason = Literal[
    "too_few_letters", "word", "after_article", "apostrophe", "abbreviation", "compound", "other_case"
]
"""Fewer than two letters are offered; else what an offered letter is in the text: a word (A, I or a); a noun after `a`
or `an`; part of a word with an apostrophe, an abbreviation or a compound (`T-shirt`); alone in the other case.
"""

REFUSAL_REASONS: tuple[RefusalReason, ...] = get_args(RefusalReason)

_APOSTROPHES, _HYPHENS = "'’", "-‐‑"


@dataclass(frozen=True)
class Refused:
    """Why a transcript is not relabelled. letter, char_idx: the first occurrence that stands against it, where one does."""

    reason: RefusalReason
    letter: str | None = None
    char_idx: int | None = None


@dataclass(frozen=True)
class Relabelled:
    """A transcript's text under a permutation of its options' letters.

    mapping: the new letter of each letter offered; a letter may be its own. char_spans: of the source's responses,
    without their markers; the same in both texts. positions: the characters that were looked up in the mapping.
    """

    text: str
    mapping: Mapping[str, str]
    char_spans: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]

    def rewrite(self, option: str) -> str:
        """An option as the text now has it."""
        return standing_alone(frozenset(self.mapping)).sub(lambda found: self.mapping[found.group()], option)


def option_letters(transcript: Transcript) -> frozenset[str]:
    """The letters that a transcript offers: of its choice sets where it has some, else of those that `auto` finds."""
    sets = transcript.options if transcript.options is not None else find_option_sets(transcript).sets
    return single_letters(option for options in sets if options is not None for option in options)


def letter_positions(transcript: Transcript, letters: frozenset[str]) -> tuple[int, ...] | Refused:
    """Every character of the text that is one of the letters on its own; Refused where one of them is anything else."""
    if len(letters) < 2:
        return Refused("too_few_letters")
    text = transcript.text
    naming = naming_words(text, find_responses(text).responses, letters)
    either_case = letters | {letter.swapcase() for letter in letters if len(letter.swapcase()) == 1}
    positions = []
    for found in standing_alone(frozenset(either_case)).finditer(text):
        letter, place = found.group(), found.start()
        reason = _reason_against(text, place, letters, naming)
        if reason is not None:
            return Refused(reason, letter, place)
        if letter in letters:
            positions.append(place)
    return tuple(positions)


def relabel(transcript: Transcript, seed: int) -> Relabelled | Refused:
    """Permute a transcript's option letters, consistently through its text.

    Every permutation is equally probable, the one that changes nothing among them, so that over participants every
    letter stands for every option alike. It depends on the seed and the transcript's key alone.

    Raises UsageError where the seed is no whole number.
    """
    if type(seed) is not int:
        raise UsageError(f"the seed of relabel is {seed!r}, expected a whole number")
    letters = option_letters(transcript)
    positions = letter_positions(transcript, letters)
    if isinstance(positions, Refused):
        return positions
    mapping = _draw(letters, transcript.key, seed)
    chars = list(transcript.text)
    for place in positions:
        chars[place] = mapping[chars[place]]
    spans = tuple((found.char_start, found.char_stop) for found in find_responses(transcript.text).responses)
    return Relabelled("".join(chars), mapping, spans, positions)


def _draw(letters: frozenset[str], key: tuple[str, str, str], seed: int) -> dict[str, str]:
    """A permutation: the letters in the order of digests, which no version of a random generator changes."""
    order = sorted(letters)

    def digest(letter: str) -> bytes:
        return hashlib.blake2b(json.dumps(["relabel", seed, *key, letter]).encode(), digest_size=16).digest()

    return dict(zip(order, sorted(order, key=digest), strict=True))


def _reason_against(text: str, place: int, letters: frozenset[str], naming: frozenset[str]) -> RefusalReason | None:
    """Why the letter at a place cannot be exchanged, or is missed by an exchange; None where nothing is against it."""
    part_of = _part_of(text, place)
    if text[place] not in letters:
        # `e.g.`, `stock(s)`, `don't`, `x-axis`; and the words a, A and I, which say nothing of an option.
        is_aside = part_of is not None or text[place] in WORD_LETTERS or _is_ending(text, place)
        return None if is_aside else "other_case"
    if part_of is not None:
        return part_of
    if stands_as_word(text, place, letters, naming):
        return "word"
    article = re.search(r"(?<!\w)([Aa]n?)[^\S\n]+['\"‘“]?$", text[max(0, place - 8) : place])
    return "after_article" if article is not None and article.group(1) not in letters else None


def _part_of(text: str, place: int) -> RefusalReason | None:
    """The larger word that a letter on its own is part of."""
    before, after = text[max(0, place - 2) : place], text[place + 1 : place + 4]
    if (after[:1] and after[0] in _APOSTROPHES and after[1:2].isalpha()) or (
        len(before) == 2 and before[1] in _APOSTROPHES and before[0].isalpha()
    ):
        return "apostrophe"
    if (after[:1] == "." and after[1:2].isalpha()) or (len(before) == 2 and before[1] == "." and before[0].isalpha()):
        return "abbreviation"
    if after[:1] and after[0] in _HYPHENS and after[1:3].isalpha() and len(after) == 3:
        return "compound"
    return None


def _is_ending(text: str, place: int) -> bool:
    """Whether a letter is the ending in `stock(s)`."""
    return place > 1 and text[place - 1] == "(" and text[place - 2].isalpha() and text[place + 1 : place + 2] == ")"
