"""What a condition cuts from a source text, and where the responses then stand."""

from __future__ import annotations

import pytest
from encoding_cases import FRAGMENTS, exact, flags, transcript_of
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_real import tiny_tokenizer

from psyfast.data.conditions.plain import plain
from psyfast.data.encode import Protocol, encode_text
from psyfast.data.encoded import Limits
from psyfast.data.rendering import Source
from psyfast.data.responses import find_responses
from psyfast.errors import UsageError

TEXT = "Go. <<A>>. <<B>>."


def test_added_text_moves_the_responses() -> None:
    rendered = Source(transcript_of(TEXT, [["A", "B"], None])).join(["Hi. ", (0, 3), (10, 17)])
    assert rendered.text == "Hi. Go. <<B>>."
    (response,) = rendered.responses
    assert (response.response_idx, response.char_start, response.char_stop) == (1, 10, 11)


def test_unmarked_and_unscored_responses() -> None:
    rendered = Source(transcript_of(TEXT)).join([(0, 17)], unmarked={0})
    assert rendered.text == "Go. A. <<B>>."
    assert [(r.response_idx, r.char_start) for r in rendered.responses] == [(1, 9)]
    past = Source(transcript_of(TEXT)).join([(0, 17)], scored={1})
    assert [r.is_scored for r in past.responses] == [False, True]
    for protocol in Protocol:
        encoded = encode_text(past, tiny_tokenizer(" <<", ">>."), protocol, Limits())
        assert [r.response_idx for r in encoded.responses] == [1]


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((0, 6), "cuts response 0, which ends at 9"),
        ((0, 8), "cuts response 0, which ends at 9"),
        ((6, 17), "begins inside response 0, which ends at 9"),
    ],
)
def test_a_span_that_cuts_a_response_is_an_error(span: tuple[int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Source(transcript_of(TEXT)).join([span])


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_plain_is_the_source(text: str) -> None:
    rendered = plain(transcript_of(text))
    assert rendered.text == text
    found = find_responses(text).responses
    assert [(r.char_start, r.char_stop, r.unbalanced) for r in rendered.responses] == [
        (r.char_start, r.char_stop, r.unbalanced) for r in found
    ]
    assert len(flags(exact(text, tiny_tokenizer()))) == len(found)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_spans_cut_the_source_response(text: str) -> None:
    rendered = Source(transcript_of(text)).join(["before ", (0, len(text)), " after"])
    for response, source in zip(rendered.responses, find_responses(text).responses, strict=True):
        assert rendered.text[response.char_start : response.char_stop] == text[source.char_start : source.char_stop]
