"""What encoding a transcript gives: token ids, where its responses are in them, and its options as branches.

ids      <|bos|> You press ␣<< A >> .      response_idx 0: token_start 4, token_stop 5
             option "B":       B           branch_start 4, ids [B], score_start 4, score_stop 5
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from psyfast.data.tokenizer import Int32Array


class Protocol(str, Enum):
    """Which tokens are the response: PROTOCOL 4 (`exact`) or the published study's rules, faults and all (`paper`)."""

    EXACT = "exact"
    PAPER = "paper"


@dataclass(frozen=True)
class Limits:
    """How many tokens may be scored.

    context_limit is the user's, max_positions the model's; the user's comes first, None means no limit.
    """

    context_limit: int | None = None
    max_positions: int | None = None

    def passed_by(self, token_stop: int) -> bool:
        """Whether tokens up to token_stop leave the context."""
        limit = self.max_positions if self.context_limit is None else self.context_limit
        return limit is not None and token_stop > limit

    def passed_model_by(self, token_stop: int) -> bool:
        """Whether tokens up to token_stop leave the model's own context, which the user may have overridden."""
        return self.max_positions is not None and token_stop > self.max_positions


@dataclass(frozen=True)
class ResponseTokens:
    """A response's scored tokens, `ids[token_start:token_stop]`; both None where it is not scored.

    flags: sorted; those of RESULTS, among them the reason where nothing is scored.
    """

    response_idx: int
    token_start: int | None
    token_stop: int | None
    flags: tuple[str, ...]

    @property
    def is_scored(self) -> bool:
        """Whether it has tokens to score."""
        return self.token_start is not None


@dataclass(frozen=True)
class OptionBranch:
    """An option in its response's place, as a branch off the transcript's ids.

    Its sequence is the transcript's first branch_start ids, then `ids`, which end with its last scored token (at least
    that one is among them). Positions [score_start, score_stop) of that sequence are scored; those before
    branch_start, shared with the transcript, count too.
    """

    response_idx: int
    option_idx: int
    branch_start: int
    ids: Int32Array
    score_start: int
    score_stop: int


@dataclass(frozen=True)
class Encoded:
    """A rendered text for the engine.

    responses, option_sets: one for every response that the text is to score, in its order. options: the branches, by
    response and option; an option without one cannot be scored. rendered_text: what the model sees.
    num_unowned_spans: spans of the `paper` scan that no response answers for.
    """

    ids: Int32Array
    responses: tuple[ResponseTokens, ...]
    options: tuple[OptionBranch, ...]
    option_sets: tuple[tuple[str, ...] | None, ...]
    rendered_text: str
    num_unowned_spans: int = 0
