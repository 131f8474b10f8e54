"""The `paper` protocol: cleaning, scan, and every known fault."""

from __future__ import annotations

import re

import pytest
from encoding_cases import FRAGMENTS, exact, flags, paper, scored, transcript_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers_real import REAL, real_tokenizer, tiny_tokenizer

from psyfast.data.clean import MAX_CHARS, clean
from psyfast.data.conditions.plain import plain
from psyfast.data.paper import scan_text
from psyfast.data.responses import find_responses
from psyfast.data.tokenizer import Tokenizer


def clean_as_written(text: str) -> str:
    """PROTOCOL 2, word by word."""
    text = text[:32768]
    text = text.replace("<<skip>>", "<<skip>>.").replace("<<-", "<< -").replace("<<think>>", "<< think>>")
    text = text.replace("More Details >>", "More Details ->")
    if text.count("<<") > text.count(">>"):
        text = text[: text.rfind("<<")]
    return re.sub(r"\s+>>", ">>", text)


def spans_as_written(ids: list[int], opener: list[int], closer: list[int]) -> list[tuple[int, int]]:
    """PROTOCOL 3, one position at a time."""
    spans, place = [], 0
    while place < len(ids):
        if ids[place : place + len(opener)] != opener:
            place += 1
            continue
        start = place = place + len(opener)
        while place < len(ids) and ids[place : place + len(closer)] != closer:
            place += 1
        spans.append((start, place))
        place += len(closer)
    return [span for span in spans if span[1] > span[0]]


TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)


@settings(max_examples=500)
@given(TEXTS)
def test_cleaning(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.text == clean_as_written(text)
    assert len(cleaned.source_idx) == len(cleaned.text) + 1
    assert (cleaned.source_idx[1:] >= cleaned.source_idx[:-1]).all()
    # every character stands for its source, but for the few that were put in
    for char, place in zip(cleaned.text, cleaned.source_idx, strict=False):
        assert char in " .->" or char == text[place]


@pytest.mark.parametrize("name", [*REAL, "tiny"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(text=TEXTS)
def test_the_study_spans_and_one_row_a_response(name: str, text: str) -> None:
    tokenizer = tiny_tokenizer(">>.", " <<", "<<-", " >>") if name == "tiny" else real_tokenizer(name)
    encoded = paper(text, tokenizer)
    ids = tokenizer.encode(clean_as_written(text)).ids.tolist()
    markers = [tokenizer.encode_plain(marker).ids.tolist() for marker in (" <<", ">>")]
    assert encoded.ids.tolist() == ids
    found = [(r.token_start, r.token_stop) for r in encoded.responses if r.is_scored]
    assert found == spans_as_written(ids, *markers)
    assert encoded.num_unowned_spans == 0
    assert [r.response_idx for r in encoded.responses] == list(range(len(find_responses(text).responses)))
    assert all(response.is_scored or response.flags for response in encoded.responses)


def test_a_close_marker_that_merges_runs_on_and_swallows() -> None:
    tokenizer = tiny_tokenizer(" <<", ">>.")
    text = "You <<A>>. You <<B>>, You <<C>>."
    encoded = paper(text, tokenizer)
    assert flags(encoded) == [["runs_on"], ["missed"], ["runs_on"]]
    assert "".join(scored(encoded, tokenizer)[0]) == "A>>.ĠYouĠ<<B"
    assert encoded.responses[2].token_stop == len(encoded.ids)
    assert scored(exact(text, tokenizer), tokenizer) == [("A",), ("B",), ("C",)]


@pytest.mark.parametrize(
    ("name", "after"),
    [("qwen2", ","), ("qwen2", "\n"), ("qwen3.5", ","), ("llama3", ","), ("llama3", "\n"), ("deepseek", "\n")],
)
def test_real_vocabularies_merge_close_markers(name: str, after: str) -> None:
    tokenizer = real_tokenizer(name)
    text = f"You press <<A>>{after} then you press <<B>> and <<C>> too."
    encoded = paper(text, tokenizer)
    assert flags(encoded) == [["runs_on"], ["missed"], []]
    assert len(scored(encoded, tokenizer)[0]) > 3
    assert scored(exact(text, tokenizer), tokenizer) == [("A",), ("B",), ("C",)]


@pytest.mark.parametrize("name", REAL)
def test_an_open_marker_without_a_space_is_missed(name: str) -> None:
    tokenizer = real_tokenizer(name)
    encoded = paper("<<A>> and (<<B>>) and x<<C>> or\n<<D>> but <<E>> here", tokenizer)
    assert flags(encoded) == [["missed"]] * 4 + [[]]
    assert scored(encoded, tokenizer)[4] == ("E",)


def test_an_open_marker_that_merges_is_missed() -> None:
    tokenizer = tiny_tokenizer(" <<", " <<5")
    assert flags(paper("a <<5>> b <<6>>", tokenizer)) == [["missed"], []]


@pytest.mark.parametrize(
    ("text", "rendered", "expected"),
    [
        ("a <<skip>>", "a <<skip>>.", [[]]),
        ("a <<-5>> b", "a << -5>> b", [[]]),
        ("a <<think>> b", "a << think>> b", [[]]),
        ("a <<More Details >> b <<B>>", "a <<More Details -> b ", [["runs_on"], ["truncated"]]),
        ("a <<A  >> b", "a <<A>> b", [[]]),
        ("a << >> b <<B>>", "a <<>> b <<B>>", [["empty"], []]),
        ("a <<>>", "a <<>>", [["empty"]]),
        ("a <<A>> b <<", "a <<A>> b ", [[], ["truncated", "unbalanced_marker"]]),
        ("a <<b <<c>>", "a <<b ", [["runs_on", "unbalanced_marker"], ["truncated"]]),
        (">> a <<b <<c>>", ">> a <<b <<c>>", [["runs_on", "unbalanced_marker"], ["missed"]]),
        ("a <<A>>> b <<B>>", "a <<A>>> b <<B>>", [[], []]),
    ],
)
def test_cleaning_and_flags(text: str, rendered: str, expected: list[list[str]]) -> None:
    encoded = paper(text, tiny_tokenizer(" <<"))
    assert encoded.rendered_text == rendered
    assert flags(encoded) == expected


def test_spans_keep_the_number_of_the_source() -> None:
    tokenizer = tiny_tokenizer(" <<")
    encoded = paper("a <<>> b <<-1>> c<<X>> d <<Y>>", tokenizer)
    assert flags(encoded) == [["empty"], [], ["missed"], []]
    assert scored(encoded, tokenizer) == [None, ("Ġ", "-", "1"), None, ("Y",)]


# The text is cut behind 32,768 characters; the second response's first character is number 32,768 minus `before`.
@pytest.mark.parametrize(
    ("before", "second"),
    [
        (-3, ["truncated"]),  # before its open marker
        (-1, ["truncated"]),  # inside of its open marker
        (0, ["truncated"]),  # directly behind its open marker
        (2, ["truncated"]),  # inside of the response
        (4, ["truncated"]),  # directly behind the response
        (5, ["truncated"]),  # inside of its close marker
        (6, []),  # directly behind its close marker
        (7, []),
    ],
)
def test_the_cut(before: int, second: list[str]) -> None:
    head = "You <<A>> "
    text = head + "x" * (MAX_CHARS - before - 3 - len(head)) + " <<left>> and <<C>>"
    assert text.index("left") == MAX_CHARS - before
    tokenizer = tiny_tokenizer(" <<")
    encoded = paper(text, tokenizer)
    assert flags(encoded) == [[], second, ["truncated"]]
    assert scored(encoded, tokenizer)[1] == (None if second else ("l", "e", "f", "t"))
    assert flags(exact(text, tokenizer)) == [[], [], []]


def test_a_response_cut_in_the_middle_is_scored_where_stray_closers_hide_it() -> None:
    head = ">> You "
    text = head + "x" * (MAX_CHARS - 5 - len(head)) + " <<left>>"
    encoded = paper(text, tiny_tokenizer(" <<"))
    assert flags(encoded) == [["truncated"]]
    assert scored(encoded, tiny_tokenizer(" <<")) == [("l", "e")]


def test_past_the_context_everything_is_scored() -> None:
    tokenizer = tiny_tokenizer(" <<")
    encoded = paper("a <<A>> b <<BC>>", tokenizer, max_positions=9)
    assert flags(encoded) == [[], ["past_context"]]
    assert scored(encoded, tokenizer) == [("A",), ("B", "C")]


def test_swallowed_responses_lie_inside_the_span() -> None:
    tokenizer = tiny_tokenizer(" <<", ">>.")
    scan = scan_text(plain(transcript_of("a <<A>>. b <<B>>. c <<C>> d <<D>>")), tokenizer)
    assert sorted(scan.spans) == [0, 3]
    assert scan.spans[0].runs_on
    assert not scan.spans[3].runs_on


def test_markers_that_merge_with_each_other() -> None:
    tokenizer: Tokenizer = tiny_tokenizer(" <<", " <<>>")
    assert flags(paper("a <<>> b <<B>>", tokenizer)) == [["empty", "missed"], []]
