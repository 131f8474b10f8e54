"""Text to token ids with raw character offsets.

A thin layer over the backend of a transformers fast tokenizer. What it adds are offsets that can be trusted
(PROTOCOL 4), in code points of the text as it came:

    text      h  e  ´  ␣  A  🙂                   e + combining acute, composed to é by an NFC normaliser
    tokens    [h][ é    ][␣A ][🙂 1st half][🙂 2nd half]
    offsets   0-1 1------3 3-5 5-6         5-6

A token keeps its white space (no trimming), each part of a split character has the whole character's span, and a
character that the normaliser folds into its neighbour belongs to that neighbour's token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from psyfast.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Int32Array = NDArray[np.int32]

PROBE = "You press <<A>>.  I said: << é🙂>>\n"
"""A text that the wrapped tokenizer and ours must encode alike."""


@dataclass(frozen=True)
class Encoding:
    """Token ids of one text.

    ids: [T]. offsets: [T, 2], half-open character spans; (0, 0) for special tokens that the tokenizer added.
    num_prefix, first_suffix: tokens before and from there on were added around the text. word_starts: [T], True for a
    token that begins a piece of the pre-tokenizer; no merge of the vocabulary reaches across such a border.
    """

    ids: Int32Array
    offsets: Int32Array
    num_prefix: int
    first_suffix: int
    word_starts: NDArray[np.bool_]

    def overlapping(self, char_start: int, char_stop: int) -> tuple[int, int]:
        """Tokens that share a character with the span, as `(token_start, token_stop)`; equal where there are none."""
        own = self.offsets[self.num_prefix : self.first_suffix]
        if char_stop <= char_start:
            return self.num_prefix, self.num_prefix
        start = self.num_prefix + int(np.searchsorted(own[:, 1], char_start, side="right"))
        stop = self.num_prefix + int(np.searchsorted(own[:, 0], char_stop, side="left"))
        return start, max(start, stop)


class Tokenizer:
    """A fast tokenizer with its default special tokens; never truncates, pads or warns.

    Picklable, so that worker processes can be handed one. `sha256` identifies vocabulary, merges, normaliser and
    special tokens: it is that of the backend's JSON with truncation and padding off.
    """

    def __init__(self, hf_tokenizer: Any) -> None:
        """Wrap a transformers tokenizer; ModelError where it is not a fast one or the backend alone differs from it."""
        where = getattr(hf_tokenizer, "name_or_path", "") or type(hf_tokenizer).__name__
        if not getattr(hf_tokenizer, "is_fast", False):
            raise ModelError(
                f"{where}: got a slow tokenizer ({type(hf_tokenizer).__name__}), which has no character offsets; "
                "expected a fast one: a tokenizer.json beside the model"
            )
        self._restore(hf_tokenizer.backend_tokenizer.to_str(), hf_tokenizer.bos_token_id)
        expected = list(hf_tokenizer(PROBE)["input_ids"])
        if self.encode(PROBE).ids.tolist() != expected:
            raise ModelError(
                f"{where}: the tokenizer's Python class changes what its tokenizer.json gives; "
                "save it with save_pretrained by a transformers version where the two agree"
            )

    @classmethod
    def from_serialised(cls, state: str, bos: int | None) -> Tokenizer:
        """The tokenizer whose `state` (a backend's JSON) this is; needs no transformers."""
        tokenizer = cls.__new__(cls)
        tokenizer._restore(state, bos)
        return tokenizer

    def __reduce__(self) -> tuple[Callable[..., Tokenizer], tuple[str, int | None]]:
        return Tokenizer.from_serialised, (self._state, self.bos)

    def _restore(self, state: str, bos: int | None) -> None:
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(state)
        if backend.truncation or backend.padding:
            backend.no_truncation()
            backend.no_padding()
            state = backend.to_str()
        self._state = state
        self.sha256 = hashlib.sha256(state.encode()).hexdigest()
        self.bos: int | None = bos
        _keep_white_space(backend)
        self._backend: Backend = backend
        normalizer = None if backend.normalizer is None else json.loads(backend.normalizer.__getstate__())
        # an empty sequence is how some files say "none"
        self._normalizes = bool(normalizer) and normalizer != {"type": "Sequence", "normalizers": []}

    def encode(self, text: str) -> Encoding:
        """Ids of the whole text with the tokenizer's default special tokens."""
        return self._encode(text, add_special_tokens=True)

    def encode_plain(self, text: str) -> Encoding:
        """Ids of the text alone, without special tokens."""
        return self._encode(text, add_special_tokens=False)

    def token_strings(self, ids: Int32Array) -> tuple[str, ...]:
        """The tokens as the vocabulary spells them, for people to look at."""
        return tuple(self._backend.id_to_token(int(token_id)) or f"<{int(token_id)}>" for token_id in ids)

    def _encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        raw = self._backend.encode(text, add_special_tokens=add_special_tokens)
        ids = np.asarray(raw.ids, dtype=np.int32)
        offsets = np.asarray(raw.offsets, dtype=np.int32).reshape(-1, 2)
        added = np.asarray(raw.special_tokens_mask, dtype=bool)
        own = np.flatnonzero(~added)
        num_prefix, first_suffix = (int(own[0]), int(own[-1]) + 1) if own.size else (len(ids), len(ids))
        offsets[added] = 0
        body = offsets[num_prefix:first_suffix]
        np.maximum.accumulate(body, axis=0, out=body)
        if self._normalizes:
            _close_gaps(body, text)
        words = np.asarray([-1 if word is None else word for word in raw.word_ids], dtype=np.int64)
        word_starts = np.diff(words, prepend=-2) != 0
        return Encoding(ids, offsets, num_prefix, first_suffix, word_starts)


def _keep_white_space(backend: Backend) -> None:
    """Make a backend's post-processor leave the white space of a token in its offsets."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    post_processor = None if backend.post_processor is None else json.loads(backend.post_processor.__getstate__())
    if _stop_trimming(post_processor):
        parts = json.loads(Backend(BPE()).to_str()) | {"post_processor": post_processor}
        backend.post_processor = Backend.from_str(json.dumps(parts)).post_processor


def _stop_trimming(post_processor: Any) -> bool:
    """Switch `trim_offsets` off in a post-processor's JSON, in place; whether it was on anywhere."""
    if not isinstance(post_processor, dict):
        return False
    was_on = bool(post_processor.get("trim_offsets"))
    if was_on:
        post_processor["trim_offsets"] = False
    return any([was_on, *map(_stop_trimming, post_processor.get("processors", ()))])


def _close_gaps(offsets: Int32Array, text: str) -> None:
    """Give characters between two tokens' spans to the token before them, in place.

    A normaliser that composes (NFC) reports the span of the base character alone; white space that it drops stays
    outside every token.
    """
    if not len(offsets):
        return
    nexts = np.append(offsets[1:, 0], np.int32(len(text)))
    for token_idx in np.flatnonzero(offsets[:, 1] < nexts):
        stop, next_start = int(offsets[token_idx, 1]), int(nexts[token_idx])
        gap = text[stop:next_start]
        kept = len(gap) - len(gap.lstrip())
        if kept:
            continue
        new_stop = stop + len(gap.rstrip())
        while token_idx >= 0 and offsets[token_idx, 1] == stop and offsets[token_idx, 0] < stop:
            offsets[token_idx, 1] = new_stop
            token_idx -= 1
