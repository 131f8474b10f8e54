"""Small transcripts, and what their encodings are in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psyfast.data.encode import Encoded, Protocol, encode
from psyfast.data.records import Transcript
from psyfast.data.tokenizer import Tokenizer

FRAGMENTS = (
    "You press ", " <<", "<<", ">>", ">>.", ">>,", ">>\n", " >>", "<<<", ">>>", "A", "B", " A ", "12", "1", "- 5", "\n",
    "  ", "é", "e\u0301", "🙂", "日本", "<<-", "<<skip>>", "<<think>>", "More Details >>", ". You win", "!", "<", ">",
)  # fmt: skip
"""Pieces of transcripts; any of their sequences must be encoded without an error."""


def transcript_of(text: str, options: Sequence[Sequence[str] | None] | None = None, study: str = "s") -> Transcript:
    sets = None if options is None else tuple(None if one is None else tuple(one) for one in options)
    return Transcript(study, study, "1", text, None, sets, {}, "{}", "memory", 0, 0, "")


def exact(text: str, tokenizer: Tokenizer, **limits: Any) -> Encoded:
    return encode(transcript_of(text), tokenizer, Protocol.EXACT, **limits)


def paper(text: str, tokenizer: Tokenizer, **limits: Any) -> Encoded:
    return encode(transcript_of(text), tokenizer, Protocol.PAPER, **limits)


def scored(encoded: Encoded, tokenizer: Tokenizer) -> list[tuple[str, ...] | None]:
    """The scored tokens of each response; None where it is not scored."""
    return [
        tokenizer.token_strings(encoded.ids[r.token_start : r.token_stop]) if r.is_scored else None
        for r in encoded.responses
    ]


def flags(encoded: Encoded) -> list[list[str]]:
    return [list(response.flags) for response in encoded.responses]


def same_encoding(one: Encoded, other: Encoded) -> bool:
    """Equality, arrays included."""
    return (
        one.ids.tolist() == other.ids.tolist()
        and one.responses == other.responses
        and one.option_sets == other.option_sets
        and one.rendered_text == other.rendered_text
        and [_plain(branch) for branch in one.options] == [_plain(branch) for branch in other.options]
    )


def _plain(branch: Any) -> tuple[Any, ...]:
    return (
        branch.response_idx, branch.option_idx, branch.branch_start, branch.ids.tolist(),
        branch.score_start, branch.score_stop,
    )  # fmt: skip
