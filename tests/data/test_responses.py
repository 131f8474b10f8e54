"""The source numbering: which marked responses a text has."""

from __future__ import annotations

import pytest
from encoding_cases import FRAGMENTS
from hypothesis import given
from hypothesis import strategies as st

from psyfast.data.responses import find_responses

CASES = {
    "": ([], 0),
    "no markers": ([], 0),
    "<<A>>": (["A"], 0),
    "x <<A>> y << b >>z": (["A", " b "], 0),
    "<<>>": ([""], 0),
    "<<   >>": (["   "], 0),
    "<<A": ([None], 0),
    "A>>": ([], 1),
    ">> <<A>> >>": (["A"], 2),
    "<<A <<B>>": ([None, "B"], 0),
    "<<A<<B": ([None, None], 0),
    "<<<A>>": (["<A"], 0),
    "<<A>>>": (["A"], 0),
    "<<<<A>>>>": ([None, "A"], 1),
    "<<a > b < c>>": (["a > b < c"], 0),
    "<<two\nlines>>": (["two\nlines"], 0),
    "<<🙂>><<é>>": (["🙂", "é"], 0),
    "< <A> >": ([], 0),
}


@pytest.mark.parametrize("text", CASES)
def test_cases(text: str) -> None:
    responses, num_stray_closers = CASES[text]
    marked = find_responses(text)
    found = [None if one.unbalanced else text[one.char_start : one.char_stop] for one in marked.responses]
    assert found == responses
    assert marked.num_stray_closers == num_stray_closers


@pytest.mark.parametrize(
    ("text", "span"),
    [("<< A >>", (3, 4)), ("<<A>>", (2, 3)), ("<< \n >>", (2, 2)), ("<<>>", (2, 2)), ("<<\u00a0A>>", (3, 4))],
)
def test_trimmed(text: str, span: tuple[int, int]) -> None:
    assert find_responses(text).responses[0].trimmed(text) == span


def test_an_unpaired_opener_is_an_empty_span_after_the_marker() -> None:
    (source,) = find_responses("He said << nothing").responses
    assert (source.char_start, source.char_stop, source.unbalanced) == (10, 10, True)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
def test_every_opener_is_one_response_in_order(text: str) -> None:
    marked = find_responses(text)
    starts = [source.char_start for source in marked.responses]
    assert starts == sorted(set(starts))
    for source in marked.responses:
        assert text[source.char_start - 2 : source.char_start] == "<<"
        assert "<<" not in text[source.char_start : source.char_stop]
        assert source.unbalanced or text.startswith(">>", source.char_stop)
