"""The `exact` protocol: every response found by its characters, whatever the vocabulary merges."""

from __future__ import annotations

import pytest
from encoding_cases import FRAGMENTS, exact, flags, scored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_real import REAL, real_tokenizer, tiny_tokenizer

from psyfast.data.responses import find_responses


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("after", [".", ",", "\n", ", and\n", "", ">", ")"])
@pytest.mark.parametrize("before", ["You press ", "x", "(", "", "\n"])
def test_markers_may_merge_with_anything_outside(name: str, before: str, after: str) -> None:
    tokenizer = real_tokenizer(name)
    encoded = exact(f"{before}<<left>>{after}{before}<<B>>{after}", tokenizer)
    assert scored(encoded, tokenizer) == [("left",), ("B",)]
    assert flags(encoded) == [[], []]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <<b>>", [[]]),
        ("a << b >>", [["trimmed"]]),
        ("a <<>>", [["empty"]]),
        ("a <<\n >>", [["empty", "trimmed"]]),
        ("a <<b", [["unbalanced_marker"]]),
        ("a <<b <<c>>", [["unbalanced_marker"], []]),
        ("a >> <<b>> >>", [[]]),
        ("a <<<b>>>", [[]]),
        ("<<b>>", [[]]),
        ("nothing", []),
    ],
)
def test_flags(text: str, expected: list[list[str]]) -> None:
    encoded = exact(text, tiny_tokenizer())
    assert flags(encoded) == expected
    for response in encoded.responses:
        assert response.is_scored == (not {"empty", "unbalanced_marker"} & set(response.flags))


def test_stray_closers_stay_in_the_text() -> None:
    encoded = exact("a >> <<b>> >>", tiny_tokenizer())
    assert encoded.rendered_text == "a >> <<b>> >>"


def test_nothing_is_cleaned_or_cut() -> None:
    text = "x" * 40_000 + " <<skip>> <<-5>> <<think>> More Details >>"
    encoded = exact(text, tiny_tokenizer())
    assert encoded.rendered_text == text
    assert [r.token_stop - r.token_start for r in encoded.responses] == [4, 2, 5]


@pytest.mark.parametrize(
    ("token", "text", "tokens"),
    [("A>>", "I press <<A>>.", ("A>>",)), ("<<A", "I press <<AB>>.", ("<<A", "B")), ("<<A>>", "I <<A>>", ("<<A>>",))],
)
def test_a_token_over_an_edge_counts_and_is_flagged(token: str, text: str, tokens: tuple[str, ...]) -> None:
    tokenizer = tiny_tokenizer(token)
    encoded = exact(text, tokenizer)
    assert scored(encoded, tokenizer) == [tokens]
    assert flags(encoded) == [["straddles"]]


def test_trimmed_white_space_inside_the_first_token_straddles() -> None:
    tokenizer = tiny_tokenizer(" A")
    encoded = exact("I << A>>", tokenizer)
    assert scored(encoded, tokenizer) == [("ĠA",)]
    assert flags(encoded) == [["straddles", "trimmed"]]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("response", ["🙂", "é", "e\u0301", "🦩 flamingo 🦩", "日本語", "naïve", "👩‍👩‍👧"])
def test_characters_of_several_tokens_at_the_edges(name: str, response: str) -> None:
    tokenizer = real_tokenizer(name)
    encoded = exact(f"I say <<{response}>>. So <<B>>", tokenizer)
    (first, second) = encoded.responses
    assert first.flags == second.flags == ()
    assert encoded.ids[first.token_start : first.token_stop].tolist() == tokenizer.encode_plain(response).ids.tolist()


def test_a_part_of_a_character_merged_with_a_marker_straddles() -> None:
    tokenizer = tiny_tokenizer()
    assert [len(tokens) for tokens in scored(exact("<<🙂>>", tokenizer), tokenizer)] == [4]


def test_the_first_token_of_all_cannot_be_scored() -> None:
    merging = tiny_tokenizer("<<A")
    assert flags(exact("<<A>> <<A>>", merging)) == [["straddles", "unscorable_first_token"], ["straddles"]]
    assert not exact("<<A>>", merging).responses[0].is_scored
    with_bos = tiny_tokenizer("<<A", bos="<s>")
    assert exact("<<A>>", with_bos).responses[0].token_start == 1


def test_past_the_context_nothing_is_scored() -> None:
    tokenizer = tiny_tokenizer()
    text = "<<A>> <<BC>> <<D>>"  # one token a character: B and C are tokens 8 and 9
    assert flags(exact(text, tokenizer, context_limit=10)) == [[], [], ["truncated"]]
    assert flags(exact(text, tokenizer, context_limit=9)) == [[], ["truncated"], ["truncated"]]
    assert flags(exact(text, tokenizer, max_positions=9)) == [[], ["truncated"], ["truncated"]]
    assert flags(exact(text, tokenizer, context_limit=10, max_positions=9)) == [[], ["past_context"], ["truncated"]]
    assert flags(exact(text, tokenizer, context_limit=9, max_positions=99)) == [[], ["truncated"], ["truncated"]]


@pytest.mark.parametrize("name", [*REAL, "tiny"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join), limit=st.none() | st.integers(1, 40))
def test_one_row_a_response_and_its_tokens_hold_it(name: str, text: str, limit: int | None) -> None:
    tokenizer = tiny_tokenizer(">>.", "A>>", " <<") if name == "tiny" else real_tokenizer(name)
    encoded = exact(text, tokenizer, context_limit=limit)
    sources = find_responses(text).responses
    assert [response.response_idx for response in encoded.responses] == list(range(len(sources)))
    encoding = tokenizer.encode(text)
    assert encoded.ids.tolist() == encoding.ids.tolist()
    for source, response in zip(sources, encoded.responses, strict=True):
        if not response.is_scored:
            assert response.flags
            continue
        assert 0 < response.token_start < response.token_stop <= (limit or len(encoded.ids))
        start, stop = source.trimmed(text)
        offsets = encoding.offsets
        assert offsets[response.token_start, 0] <= start < stop <= offsets[response.token_stop - 1, 1]
        # no token more than needed on either side
        assert offsets[response.token_start, 1] > start
        assert offsets[response.token_stop - 1, 0] < stop
        straddles = offsets[response.token_start, 0] < start or offsets[response.token_stop - 1, 1] > stop
        assert straddles == ("straddles" in response.flags)
