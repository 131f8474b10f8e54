"""The `exact` protocol: a response's tokens are those that overlap its characters (PROTOCOL 4).

text      He pressed << A >>. You win.
trimmed                 ^                 white space at the edges is not the response (flag `trimmed`)
tokens    …[ <<][ A][ >>][.]              [ A] covers the space too: counted, and flagged `straddles`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psyfast.data.encoded import Encoded, Limits, OptionBranch, ResponseTokens
from psyfast.data.options import needs_terminator, option_flags, usable_sets
from psyfast.data.records import Transcript
from psyfast.data.responses import CLOSE_MARKER, SourceResponse, find_responses
from psyfast.data.splice import Splicer
from psyfast.data.tokenizer import Encoding, Tokenizer


def encode_exact(transcript: Transcript, tokenizer: Tokenizer, limits: Limits) -> Encoded:
    """Encode a transcript's text as it stands."""
    text = transcript.text
    marked = find_responses(text)
    encoding = tokenizer.encode(text)
    option_sets = usable_sets(transcript.options, len(marked.responses))
    uncertain = frozenset(transcript.uncertain_options)
    responses = tuple(
        _response_tokens(response_idx, text, source, encoding, options, limits, uncertain=response_idx in uncertain)
        for response_idx, (source, options) in enumerate(zip(marked.responses, option_sets, strict=True))
    )
    splicer = Splicer(text, encoding, tokenizer)
    branches = [
        branch
        for source, tokens, options in zip(marked.responses, responses, option_sets, strict=True)
        if options is not None
        for branch in _branches(source, tokens, options, splicer, limits)
    ]
    return Encoded(encoding.ids, responses, tuple(branches), option_sets, text, marked.num_stray_closers)


def _response_tokens(
    response_idx: int,
    text: str,
    source: SourceResponse,
    encoding: Encoding,
    options: Sequence[str] | None,
    limits: Limits,
    *,
    uncertain: bool,
) -> ResponseTokens:
    if source.unbalanced:
        return ResponseTokens(response_idx, None, None, ("unbalanced_marker",))
    start, stop = source.trimmed(text)
    flags = {"trimmed"} if (start, stop) != (source.char_start, source.char_stop) else set()
    token_start, token_stop = encoding.overlapping(start, stop)
    reason = _reason_not_to_score(token_start, token_stop, limits)
    if token_stop > token_start:
        char_start, char_stop = encoding.offsets[token_start, 0], encoding.offsets[token_stop - 1, 1]
        if char_start < start or char_stop > stop:
            flags.add("straddles")
    if reason is not None:
        return ResponseTokens(response_idx, None, None, tuple(sorted({*flags, reason})))
    if limits.passed_model_by(token_stop):
        flags.add("past_context")
    flags |= option_flags(text[start:stop], options, uncertain=uncertain)
    return ResponseTokens(response_idx, token_start, token_stop, tuple(sorted(flags)))


def _reason_not_to_score(token_start: int, token_stop: int, limits: Limits) -> str | None:
    if token_stop == token_start:
        return "empty"
    if limits.passed_by(token_stop):
        return "truncated"
    if token_start == 0:
        return "unscorable_first_token"
    return None


def _branches(
    source: SourceResponse, tokens: ResponseTokens, options: Sequence[str], splicer: Splicer, limits: Limits
) -> Iterator[OptionBranch]:
    if tokens.token_start is None or tokens.token_stop is None:
        return
    text, ids = splicer.text, splicer.encoding.ids
    start, stop = source.trimmed(text)
    terminated = needs_terminator(options)
    close = text[stop : source.char_stop] + CLOSE_MARKER
    for option_idx, option in enumerate(options):
        if option == text[start:stop] and not terminated:
            # Tokenised with the text that follows, a response can end otherwise than cut off behind its close marker.
            last = tokens.token_stop - 1
            yield OptionBranch(
                tokens.response_idx, option_idx, last, ids[last : last + 1], tokens.token_start, tokens.token_stop
            )
            continue
        splice = splicer.replace(start, option + close)
        score_start, score_stop = splice.overlapping(start, start + len(option))
        if terminated:
            marker_start = start + len(option) + len(close) - len(CLOSE_MARKER)
            marker_token, _ = splice.overlapping(marker_start, marker_start + len(CLOSE_MARKER))
            if not option:
                score_start = marker_token
            score_stop = max(score_stop, marker_token + 1)
        if score_start in (0, score_stop) or limits.passed_by(score_stop):
            continue
        branch_start, branch_ids = splice.cut(ids, score_stop)
        yield OptionBranch(tokens.response_idx, option_idx, branch_start, branch_ids, score_start, score_stop)
