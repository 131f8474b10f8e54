"""The `exact` protocol: a response's tokens are those that overlap its characters (PROTOCOL 4).

text      He pressed << A >>. You win.
trimmed                 ^                 white space at the edges is not the response (flag `trimmed`)
tokens    …[ <<][ A][ >>][.]              [ A] covers the space too: counted, and flagged `straddles`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psyfast.data.encoded import Encoded, Limits, OptionBranch, ResponseTokens
from psyfast.data.options import needs_terminator, option_flags
from psyfast.data.prefixes import PrefixEncoder
from psyfast.data.rendering import RenderedResponse, RenderedText
from psyfast.data.splice import Splicer
from psyfast.data.tokenizer import Encoding, Tokenizer


def encode_exact(
    rendered: RenderedText, tokenizer: Tokenizer, limits: Limits, encoder: PrefixEncoder | None = None
) -> Encoded:
    """Encode a rendered text as it stands; what a chat template made brings its special tokens itself.

    encoder: of this and the texts before it.
    """
    text = rendered.text
    adds_special = rendered.turns is None
    encoding = (encoder or PrefixEncoder(tokenizer)).encode(text, adds_special=adds_special)
    sources = [source for source in rendered.responses if source.is_scored]
    responses = tuple(_response_tokens(text, source, encoding, limits) for source in sources)
    splicer = Splicer(text, encoding, tokenizer, adds_special=adds_special)
    branches = [
        branch
        for source, tokens in zip(sources, responses, strict=True)
        if source.options is not None
        for branch in _branches(source, tokens, source.options, splicer, limits)
    ]
    option_sets = tuple(source.options for source in sources)
    return Encoded(encoding.ids, responses, tuple(branches), option_sets, text)


def _response_tokens(text: str, source: RenderedResponse, encoding: Encoding, limits: Limits) -> ResponseTokens:
    response_idx = source.response_idx
    if source.unbalanced:
        return ResponseTokens(response_idx, None, None, tuple(sorted({*source.flags, "unbalanced_marker"})))
    start, stop = source.trimmed(text)
    flags = set(source.flags)
    if (start, stop) != (source.char_start, source.char_stop):
        flags.add("trimmed")
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
    flags |= option_flags(text[start:stop], source.options, uncertain=source.options_uncertain)
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
    source: RenderedResponse, tokens: ResponseTokens, options: Sequence[str], splicer: Splicer, limits: Limits
) -> Iterator[OptionBranch]:
    if tokens.token_start is None or tokens.token_stop is None:
        return
    text, ids = splicer.text, splicer.encoding.ids
    start, stop = source.trimmed(text)
    terminated = needs_terminator(options)
    close = text[stop : source.char_stop] + source.close
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
            marker_start = start + len(option) + len(close) - len(source.close)
            marker_token, _ = splice.overlapping(marker_start, marker_start + len(source.close))
            if not option:
                score_start = marker_token
            score_stop = max(score_stop, marker_token + 1)
        if score_start in (0, score_stop) or limits.passed_by(score_stop):
            continue
        branch_start, branch_ids = splice.cut(ids, score_stop)
        yield OptionBranch(tokens.response_idx, option_idx, branch_start, branch_ids, score_start, score_stop)
