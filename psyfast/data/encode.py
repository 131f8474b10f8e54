"""From transcripts to token ids, response token spans and option branches, under either protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from psyfast.data.encoded import Encoded, Limits, OptionBranch, Protocol, ResponseTokens
from psyfast.data.exact import encode_exact
from psyfast.data.paper import encode_paper
from psyfast.data.records import Transcript
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.workers import map_transcripts

__all__ = ["Encoded", "OptionBranch", "Protocol", "ResponseTokens", "encode", "encode_many"]


def encode(
    transcript: Transcript,
    tokenizer: Tokenizer,
    protocol: Protocol,
    *,
    context_limit: int | None = None,
    max_positions: int | None = None,
) -> Encoded:
    """Encode one transcript.

    context_limit, max_positions: tokens that the user and the model allow; the user's number comes first. Under
    `exact` a response that leaves them is not scored (`truncated`), under `paper` it is (`past_context`).
    """
    limits = Limits(context_limit, max_positions)
    if protocol is Protocol.EXACT:
        return encode_exact(transcript, tokenizer, limits)
    return encode_paper(transcript, tokenizer, limits)


def encode_many(
    transcripts: Iterable[Transcript],
    tokenizer: Tokenizer,
    protocol: Protocol,
    *,
    context_limit: int | None = None,
    max_positions: int | None = None,
    num_workers: int = 0,
) -> Iterator[Encoded]:
    """Encode transcripts in their order, in num_workers processes (0: in this one); the same results for any number."""
    work = partial(encode, protocol=protocol, context_limit=context_limit, max_positions=max_positions)
    return map_transcripts(work, transcripts, tokenizer, num_workers)
