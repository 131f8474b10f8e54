"""From texts to token ids, response token spans and option branches, under either protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from psyfast.data.conditions.plain import plain
from psyfast.data.encoded import Encoded, Limits, OptionBranch, Protocol, ResponseTokens
from psyfast.data.exact import encode_exact
from psyfast.data.paper import encode_paper
from psyfast.data.prefixes import PrefixEncoder
from psyfast.data.records import Transcript
from psyfast.data.rendering import RenderedText
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.workers import map_in_order

__all__ = [
    "Encoded",
    "OptionBranch",
    "Protocol",
    "ResponseTokens",
    "encode",
    "encode_many",
    "encode_text",
    "encode_texts",
]


def encode_text(
    rendered: RenderedText,
    tokenizer: Tokenizer,
    protocol: Protocol,
    limits: Limits,
    encoder: PrefixEncoder | None = None,
) -> Encoded:
    """Encode a rendered text; encoder: of this and the texts before it, if there are any like it. Under `exact` a response that leaves the limits is not scored (`truncated`), under `paper`
    it is (`past_context`).
    """
    if protocol is Protocol.EXACT:
        return encode_exact(rendered, tokenizer, limits, encoder)
    return encode_paper(rendered, tokenizer, limits, encoder)


def encode_texts(
    groups: Iterable[tuple[RenderedText, ...]],
    tokenizer: Tokenizer,
    protocol: Protocol,
    limits: Limits,
    *,
    num_workers: int = 0,
) -> Iterator[tuple[Encoded, ...]]:
    """Encode groups of texts in their order, in num_workers processes (0: in this one), for the same results."""
    return map_in_order(partial(_encode_group, protocol=protocol, limits=limits), groups, tokenizer, num_workers)


def _encode_group(
    group: tuple[RenderedText, ...], tokenizer: Tokenizer, *, protocol: Protocol, limits: Limits
) -> tuple[Encoded, ...]:
    encoder = PrefixEncoder(tokenizer)
    return tuple(encode_text(rendered, tokenizer, protocol, limits, encoder) for rendered in group)


def encode(
    transcript: Transcript,
    tokenizer: Tokenizer,
    protocol: Protocol,
    *,
    context_limit: int | None = None,
    max_positions: int | None = None,
) -> Encoded:
    """Encode one transcript as it is.

    context_limit, max_positions: tokens that the user and the model allow; the user's number comes first.
    """
    return encode_text(plain(transcript), tokenizer, protocol, Limits(context_limit, max_positions))


def encode_many(
    transcripts: Iterable[Transcript],
    tokenizer: Tokenizer,
    protocol: Protocol,
    *,
    context_limit: int | None = None,
    max_positions: int | None = None,
    num_workers: int = 0,
) -> Iterator[Encoded]:
    """Encode transcripts as they are, in their order and in num_workers processes (0: in this one)."""
    work = partial(encode, protocol=protocol, context_limit=context_limit, max_positions=max_positions)
    return map_in_order(work, transcripts, tokenizer, num_workers)
