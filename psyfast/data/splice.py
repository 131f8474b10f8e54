"""Token ids of a text that was changed at one place, without tokenising all of it again.

    text      You press <<A>>. … You see K. You press <<A>>. You win.
    changed                      └anchor            └ B>>    (replacement; the changed text ends with it)
    ids       those of the text up to the anchor, then those of `text[anchor:edit] + replacement` alone

Why this gives the ids of the whole changed text. A pre-tokenizer cuts a text from left to right into pieces, and the
vocabulary's merges never cross a piece's border. So two things are needed:

1. the anchor is a piece's border in the changed text too. It is one in the original, and where a piece ends depends
   on the piece and at most on the run of white space, letters, digits or signs that follows it. Between anchor and
   edit there are at least 64 characters with white space and a letter or digit among them, which ends every such run;
2. cutting from the anchor on needs nothing of what stands before it. This is checked: the original's ids between anchor
   and edit must come out again. Tokenizers for which it fails (some put a mark before the text's first word) are
   given more room, and at last the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psyfast.data.tokenizer import Encoding, Int32Array, Tokenizer

ROOMS = (64, 512)
"""Characters between anchor and edit that are tried, before the whole text is."""

CHECKED_CHARS = 16
"""Characters of the original behind the edit that the check sees, so that the cut does not show before the edit."""


@dataclass(frozen=True)
class Splice:
    """Ids of a changed text: the original's first num_kept, then `tail`, whose offsets count from char_offset."""

    num_kept: int
    char_offset: int
    tail: Encoding

    def overlapping(self, char_start: int, char_stop: int) -> tuple[int, int]:
        """Tokens of the changed text, as positions in it, that share a character with a span of the changed text."""
        start, stop = self.tail.overlapping(char_start - self.char_offset, char_stop - self.char_offset)
        return self.num_kept + start, self.num_kept + stop

    def cut(self, original_ids: Int32Array, token_stop: int) -> tuple[int, Int32Array]:
        """The changed text's ids up to token_stop as (ids shared with the original, the rest: one id at least)."""
        ids = self.tail.ids[: token_stop - self.num_kept]
        old = original_ids[self.num_kept : self.num_kept + len(ids)]
        differing = np.flatnonzero(ids[: len(old)] != old)
        shared = int(differing[0]) if differing.size else len(old)
        shared = min(shared, len(ids) - 1)
        return self.num_kept + shared, ids[shared:]


class Splicer:
    """Changes of one text. `num_whole` counts the changed texts that had to be tokenised whole.

    adds_special: whether the text's encoding has the tokenizer's special tokens around it.
    """

    def __init__(self, text: str, encoding: Encoding, tokenizer: Tokenizer, *, adds_special: bool = True) -> None:
        self.text, self.encoding, self._tokenizer = text, encoding, tokenizer
        self._encode_whole = tokenizer.encode if adds_special else tokenizer.encode_plain
        self.num_whole = 0
        starts, stops = encoding.offsets[:, 0], encoding.offsets[:, 1]
        is_anchor = encoding.word_starts.copy()
        is_anchor[: encoding.num_prefix + 1] = False
        is_anchor[encoding.first_suffix :] = False
        # A token may begin inside a character that the token before it began.
        is_anchor[1:] &= starts[1:] >= stops[:-1]
        self._anchors = np.flatnonzero(is_anchor)
        self._anchor_chars = starts[self._anchors]
        self._edit: tuple[int, tuple[int, int] | None] | None = None

    def replace(self, edit_start: int, replacement: str) -> Splice:
        """Ids of `text[:edit_start] + replacement`."""
        if self._edit is None or self._edit[0] != edit_start:
            self._edit = edit_start, self._anchor(edit_start)
        anchor = self._edit[1]
        if anchor is None:
            self.num_whole += 1
            return Splice(0, 0, self._encode_whole(self.text[:edit_start] + replacement))
        token_idx, char_idx = anchor
        tail = self._tokenizer.encode_plain(self.text[char_idx:edit_start] + replacement)
        return Splice(token_idx, char_idx, tail)

    def encode(self, edit_start: int, replacement: str) -> Encoding:
        """The encoding of `text[:edit_start] + replacement`, special tokens around it included."""
        splice = self.replace(edit_start, replacement)
        if not splice.num_kept:
            return splice.tail
        kept, tail = slice(0, splice.num_kept), splice.tail
        suffix = slice(self.encoding.first_suffix, None)
        return Encoding(
            ids=np.concatenate([self.encoding.ids[kept], tail.ids, self.encoding.ids[suffix]]),
            offsets=np.concatenate(
                [self.encoding.offsets[kept], tail.offsets + splice.char_offset, self.encoding.offsets[suffix]],
                dtype=np.int32,
                casting="same_kind",
            ),
            num_prefix=self.encoding.num_prefix,
            first_suffix=splice.num_kept + len(tail.ids),
            word_starts=np.concatenate(
                [self.encoding.word_starts[kept], tail.word_starts, self.encoding.word_starts[suffix]]
            ),
        )

    def _anchor(self, edit_start: int) -> tuple[int, int] | None:
        """Token and character where a changed text's own ids may begin; None: the whole text is needed."""
        for room in ROOMS:
            nth = int(np.searchsorted(self._anchor_chars, edit_start - room, side="right")) - 1
            if nth < 0:
                return None
            token_idx, char_idx = int(self._anchors[nth]), int(self._anchor_chars[nth])
            between = self.text[char_idx:edit_start]
            ends_runs = any(map(str.isspace, between)) and any(map(str.isalnum, between))
            if ends_runs and self._comes_out_again(token_idx, char_idx, edit_start):
                return token_idx, char_idx
        return None

    def _comes_out_again(self, token_idx: int, char_idx: int, edit_start: int) -> bool:
        """Whether tokenising from the anchor on gives the original's pieces before the one that touches the edit."""
        again = self._tokenizer.encode_plain(self.text[char_idx : edit_start + CHECKED_CHARS]).ids
        _, stop = self.encoding.overlapping(char_idx, edit_start)
        piece = stop - 1
        while piece > token_idx and not self.encoding.word_starts[piece]:
            piece -= 1
        num_checked = piece - token_idx
        return num_checked > 0 and bool(np.array_equal(self.encoding.ids[token_idx:piece], again[:num_checked]))
