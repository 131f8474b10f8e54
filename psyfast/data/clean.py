"""The study's cleaning and cut of a text, with the way back to the source (PROTOCOL 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER
from psyfast.data.tokenizer import Int32Array

MAX_CHARS = 32_768

# old text, new text, for each character of the new one the character of the old one that it stands for
# (the old one's length: the character after it)
_REPLACEMENTS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("<<skip>>", "<<skip>>.", (*range(8), 8)),
    ("<<-", "<< -", (0, 1, 2, 2)),
    ("<<think>>", "<< think>>", (0, 1, 2, *range(2, 9))),
    ("More Details >>", "More Details ->", tuple(range(15))),
)
_SPACE_BEFORE_CLOSER = re.compile(rf"\s+(?={CLOSE_MARKER})")


@dataclass(frozen=True)
class CleanedText:
    """A cleaned text; source_idx: [len(text) + 1], the source character that each stands for, at last where it ends."""

    text: str
    source_idx: Int32Array

    @property
    def source_stop(self) -> int:
        """Where the source was cut; its length if it was not."""
        return int(self.source_idx[-1])


def clean(source: str) -> CleanedText:
    """Clean and cut a text as the study does, in its order."""
    cleaned = uncleaned(source[:MAX_CHARS])
    for old, new, origin in _REPLACEMENTS:
        cleaned = _replace(cleaned, old, new, origin)
    if cleaned.text.count(OPEN_MARKER) > cleaned.text.count(CLOSE_MARKER):
        cut_at = cleaned.text.rfind(OPEN_MARKER)
        cleaned = CleanedText(cleaned.text[:cut_at], cleaned.source_idx[: cut_at + 1])
    return _without(cleaned, _SPACE_BEFORE_CLOSER)


def uncleaned(source: str) -> CleanedText:
    """A text as it is."""
    return CleanedText(source, np.arange(len(source) + 1, dtype=np.int32))


def _replace(cleaned: CleanedText, old: str, new: str, origin: tuple[int, ...]) -> CleanedText:
    text, source_idx = cleaned.text, cleaned.source_idx
    places = [match.start() for match in re.finditer(re.escape(old), text)]
    if not places:
        return cleaned
    pieces, done = [], 0
    for place in places:
        pieces += [source_idx[done:place], source_idx[place + np.asarray(origin)]]
        done = place + len(old)
    return CleanedText(text.replace(old, new), np.concatenate([*pieces, source_idx[done:]]))


def _without(cleaned: CleanedText, pattern: re.Pattern[str]) -> CleanedText:
    keep = np.ones(len(cleaned.source_idx), dtype=bool)
    for match in pattern.finditer(cleaned.text):
        keep[match.start() : match.end()] = False
    return CleanedText(pattern.sub("", cleaned.text), cleaned.source_idx[keep])
