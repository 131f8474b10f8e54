"""Texts that begin alike, tokenised once as far as they do: the trials of a transcript after the same instructions."""

from __future__ import annotations

from psyfast.data.splice import Splicer
from psyfast.data.tokenizer import Encoding, Tokenizer

MIN_SHARED_CHARS = 128
"""A shorter beginning is tokenised again: finding where it ends would cost as much."""


class PrefixEncoder:
    """Encodes texts one after the other, each with what it shares with the one before; the same ids as without."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._last: dict[bool, Splicer] = {}

    def encode(self, text: str, *, adds_special: bool = True) -> Encoding:
        """As the tokenizer's `encode`, or its `encode_plain` where no special tokens are to be added."""
        last = self._last.get(adds_special)
        shared = 0 if last is None else common_prefix(last.text, text)
        if last is not None and shared >= MIN_SHARED_CHARS:
            encoding = last.encode(shared, text[shared:])
        else:
            encoding = (self._tokenizer.encode if adds_special else self._tokenizer.encode_plain)(text)
        self._last[adds_special] = Splicer(text, encoding, self._tokenizer, adds_special=adds_special)
        return encoding


def common_prefix(one: str, other: str) -> int:
    """How many leading characters two texts share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
