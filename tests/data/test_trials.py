"""Trials: each rule on small transcripts worked out by hand, then on any text, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from encoding_cases import FRAGMENTS, transcript_of
from hypothesis import given
from hypothesis import strategies as st

from psyfast.data.records import Transcript
from psyfast.data.responses import find_responses
from psyfast.data.surroundings import word_after, words_before
from psyfast.data.trials import Trials, find_trials
from psyfast.errors import DataError


def session(text: str, trials: tuple[float, ...] | None = None) -> Transcript:
    num_responses = len(find_responses(text).responses)
    return replace(transcript_of(text), num_responses=num_responses, trials=trials)


def cut(text: str, **settings: Any) -> tuple[Trials, list[str]]:
    """The trials of a text, and the text of each."""
    found = find_trials(session(text, **settings))
    return found, [text[start:stop] for start, stop in found.char_spans]


def instructions(text: str, found: Trials) -> str:
    return text[slice(*found.instructions)]


def headings(text: str, found: Trials) -> list[str | None]:
    return [None if span is None else text[slice(*span)] for span in found.headings]


# --- lines


def test_each_line_with_a_response_is_a_trial_and_takes_what_follows_the_one_before() -> None:
    text = "Win points.\nYou press <<J>>.\nYou win.\nYou press <<F>>.\nYou lose.\n"
    found, trials = cut(text)
    assert (found.rule, found.trial_of_response) == ("lines", (0, 1))
    assert trials == ["You press <<J>>.\n", "You win.\nYou press <<F>>.\n"]
    assert instructions(text, found) == "Win points.\n"
    assert text[found.char_spans[-1][1] :] == "You lose.\n"
    assert found.headings == (None, None)


def test_responses_on_one_line_belong_together() -> None:
    text = "You see a cup. You say <<cup>>. Sure? <<yes>>.\nYou see a dog. You say <<dog>>. Sure? <<no>>."
    found, trials = cut(text)
    assert found.trial_of_response == (0, 0, 1, 1)
    assert trials == text.splitlines(keepends=True)


def test_a_response_over_several_lines_ends_with_the_line_of_its_close_marker() -> None:
    found, trials = cut("Write: <<one\n\ntwo>>, and <<three>>.\nOK.\nWrite: <<four>>.\n")
    assert found.trial_of_response == (0, 0, 1)
    assert trials == ["Write: <<one\n\ntwo>>, and <<three>>.\n", "OK.\nWrite: <<four>>.\n"]


# --- how many lines the first trial takes

CUES = (
    "Welcome.\nHere is how it goes.\n"
    "You see a cup.\nYou say <<cup>>.\nCorrect.\n"
    "You see a dog.\nYou say <<cat>>.\nWrong.\n"
    "You see a sun.\nYou say <<sun>>.\nCorrect.\n"
)


def test_the_first_trial_takes_as_many_lines_as_most_have_less_those_that_open_unlike_any() -> None:
    # Later trials have two lines before their own (feedback and cue); `Here` opens no line of theirs, `You` does.
    found, trials = cut(CUES)
    assert instructions(CUES, found) == "Welcome.\nHere is how it goes.\n"
    assert trials[0] == "You see a cup.\nYou say <<cup>>.\n"
    assert trials[1] == "Correct.\nYou see a dog.\nYou say <<cat>>.\n"


def test_only_lines_at_the_top_are_left_to_the_instructions() -> None:
    text = CUES.replace("You see a cup.\n", "You see a cup.\nReady?\n").replace("Correct.\n", "Correct.\nNow.\n")
    # Three before most: `You see a cup.`, `Ready?` and the line above; that one opens with `Here`.
    _, trials = cut(text)
    assert trials[0] == "You see a cup.\nReady?\nYou say <<cup>>.\n"


def test_of_equally_frequent_numbers_the_first_trial_takes_the_smaller() -> None:
    found, trials = cut("A cue.\nA cue.\nA <<1>>.\nA cue.\nA cue.\nA <<2>>.\nA cue.\nA <<3>>.\n")
    assert trials[0] == "A cue.\nA <<1>>.\n"
    assert found.instructions == (0, len("A cue.\n"))


def test_a_single_trial_takes_its_own_line_alone() -> None:
    text = "Read this.\nYou see a cup.\nYou say <<cup>>.\nThanks."
    found, trials = cut(text)
    assert trials == ["You say <<cup>>.\n"]
    assert instructions(text, found) == "Read this.\nYou see a cup.\n"


# --- blocks

BLOCK = "You see {}.\nWhat is it?\nYou say <<{}>>.\n"


def test_blocks_between_blank_lines_are_trials() -> None:
    text = "\n".join(["Name things.\n", *(BLOCK.format(word, word) for word in ("cups", "dogs", "suns"))])
    found, trials = cut(text)
    assert (found.rule, found.trial_of_response) == ("blocks", (0, 1, 2))
    assert trials[0] == BLOCK.format("cups", "cups")
    assert trials[1] == "\n" + BLOCK.format("dogs", "dogs")
    assert instructions(text, found) == "Name things.\n\n"
    assert found.headings == (None,) * 3


def sized_blocks(*sizes: int) -> str:
    return "\n".join("".join(f"You press <<{idx}>>.\n" for idx in range(size)) for size in sizes)


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ((4, 4, 4), "blocks"),
        ((4, 5), "lines"),  # median 4.5
        ((1, 1, 8), "blocks"),
        ((1, 1, 9), "lines"),
        ((3, 4, 5, 8), "lines"),
        ((2, 4, 4, 8), "blocks"),
        ((3,), "lines"),  # one block divides nothing
    ],
)
def test_blocks_hold_four_responses_in_the_median_and_eight_at_most(sizes: tuple[int, ...], rule: str) -> None:
    found, _ = cut(sized_blocks(*sizes))
    assert found.rule == rule
    assert found.num_trials == (len(sizes) if rule == "blocks" else sum(sizes))


def test_white_space_alone_is_a_blank_line_and_blocks_without_responses_are_none() -> None:
    found, trials = cut("One <<1>>.\r\n \t\r\nA break.\r\n\r\nTwo <<2>>.\r\n")
    assert found.rule == "blocks"
    assert trials == ["One <<1>>.\r\n", " \t\r\nA break.\r\n\r\nTwo <<2>>.\r\n"]


# --- returns

STAGES = "You press <<{}>> and arrive at planet 1.\nYou press <<{}>> to ask.\nYou get 1.\n"


def test_lines_up_to_the_return_of_the_first_surroundings_form_a_trial() -> None:
    text = "Fly.\n" + "".join(STAGES.format(*pair) for pair in ("BR", "JD", "BD", "JR"))
    found, trials = cut(text)
    assert (found.rule, found.trial_of_response) == ("returns", (0, 0, 1, 1, 2, 2, 3, 3))
    assert trials[0] == "You press <<B>> and arrive at planet 1.\nYou press <<R>> to ask.\n"
    assert trials[1].startswith("You get 1.\nYou press <<J>> and")
    assert instructions(text, found) == "Fly.\n"


def test_returns_need_one_length_in_four_of_five_trials() -> None:
    whole, missed = STAGES.format("B", "R"), "You press <<B>> and arrive at planet 1.\n"
    found, _ = cut(whole * 4 + missed)
    assert (found.rule, found.num_trials) == ("returns", 5)
    found, _ = cut(whole * 3 + missed)
    assert (found.rule, found.num_trials) == ("lines", 7)


@pytest.mark.parametrize(("length", "rule"), [(2, "returns"), (8, "returns"), (9, "lines")])
def test_returns_are_eight_responses_apart_at_most(length: int, rule: str) -> None:
    trial = "First I pick <<a>>.\n" + "Then I press <<b>>.\n" * (length - 1)
    assert cut(trial * 5)[0].rule == rule


def test_a_return_on_every_line_is_no_trial_of_several() -> None:
    assert cut("You pick <<a>> and then <<b>>.\n" * 5)[0].rule == "lines"


def test_words_around_a_response() -> None:
    text = "Now you choose <<A>> and\n'y = <<B>>. Good <<C C>> <<D>>\nyes <<"
    responses = find_responses(text).responses
    assert [words_before(text, one) for one in responses] == [
        ("you", "choose"), ("and", "y"), ("<<>>", "Good"), ("Good", "<<>>"), ("<<>>", "yes"),
    ]  # fmt: skip
    # A sign or a line's end stands between a response and what follows: no word is directly after it.
    assert [word_after(text, one) for one in responses] == ["and", "", "", "", ""]


def test_a_long_answer_is_one_word_of_what_follows() -> None:
    long_answer = "so many words " * 60
    text = f"I say <<{long_answer}>> then <<b>>"
    assert words_before(text, find_responses(text).responses[1]) == ("<<>>", "then")


# --- headings

TWO_BLOCKS = (
    "Choose.\n\nMore about it.\nBlock 1:\nTwo options, B and E.\n"
    + "You choose <<B>>. It gives 3.\n" * 9
    + "\nBlock 2:\nTwo options, B and Q.\n\n"
    + "You choose <<Q>>. It gives 1.\n" * 9
)


def test_headings_of_blocks() -> None:
    found, trials = cut(TWO_BLOCKS)
    assert (found.rule, found.num_trials) == ("lines", 18)
    first, second = "Block 1:\nTwo options, B and E.\n", "Block 2:\nTwo options, B and Q.\n"
    assert headings(TWO_BLOCKS, found) == [first] * 9 + [second] * 9
    # `More about it.` opens like no line of the second heading.
    assert instructions(TWO_BLOCKS, found) == "Choose.\n\nMore about it.\n"
    assert trials[0] == "You choose <<B>>. It gives 3.\n"
    assert trials[9] == "\n" + second + "\nYou choose <<Q>>. It gives 1.\n"


def test_what_is_shown_of_a_trial_alone_and_with_its_history() -> None:
    found, _ = cut(TWO_BLOCKS)
    shown = [
        "".join(TWO_BLOCKS[slice(*span)] for span in found.shown_with(*pair)) for pair in ((0, 0), (10, 10), (8, 9))
    ]
    opening = "Choose.\n\nMore about it.\n"
    assert shown == [
        opening + "Block 1:\nTwo options, B and E.\nYou choose <<B>>. It gives 3.\n",
        opening + "Block 2:\nTwo options, B and Q.\nYou choose <<Q>>. It gives 1.\n",
        # The heading of the last trial's block stands in that trial, and not twice.
        opening + "You choose <<B>>. It gives 3.\n\nBlock 2:\nTwo options, B and Q.\n\nYou choose <<Q>>. It gives 1.\n",
    ]


def test_a_block_without_a_heading_has_none_and_instructions_are_no_heading() -> None:
    text = "One.\n\nTwo.\n" + "You press <<J>>.\n" * 9 + "\n" + "You press <<F>>.\n" * 9
    found, _ = cut(text)
    assert found.rule == "lines"
    assert set(found.headings) == {None}
    assert instructions(text, found) == "One.\n\nTwo.\n"


def test_a_blocks_first_trial_takes_its_own_cue_and_the_heading_is_what_stands_above() -> None:
    cue = "See {}.\nSay <<{}>>.\nRight.\n"
    words = [cue.format(word, word) for word in "abcdefghi"]
    text = "Name them.\n\nPart 1\n" + "".join(words) + "\nPart 2\n" + "".join(words)
    found, trials = cut(text)
    assert set(headings(text, found)) == {"Part 1\n", "Part 2\n"}
    # Most trials have two lines before their own, and `Part` opens a later line: the first trial takes its heading.
    assert trials[0] == "Part 1\nSee a.\nSay <<a>>.\n"
    assert trials[9] == "Right.\n\nPart 2\nSee a.\nSay <<a>>.\n"


# --- the data's field, and a function

ROUNDS = "Go. Round 1: <<A>>. Lost. Round 2: <<B>>. Won.\nRound 3: <<C>>. Won."


def test_the_field_decides_and_a_trial_may_end_inside_a_line() -> None:
    found, trials = cut(ROUNDS, trials=(1, 2, 3))
    assert (found.rule, found.trial_of_response) == ("field", (0, 1, 2))
    assert trials == ["Go. Round 1: <<A>>.", " Lost. Round 2: <<B>>. Won.\n", "Round 3: <<C>>. Won."]


def test_runs_of_equal_numbers_are_trials_however_they_are_counted() -> None:
    assert cut(ROUNDS, trials=(7, 7, 0.5))[0].trial_of_response == (0, 0, 1)
    assert cut(ROUNDS, trials=(1, 2, 1))[0].trial_of_response == (0, 1, 2)


def test_a_function_comes_before_the_field() -> None:
    found = find_trials(session(ROUNDS, (1, 2, 3)), lambda transcript: [5] * transcript.num_responses)
    assert (found.rule, found.trial_of_response) == ("callable", (0, 0, 0))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([1, 2], "returned 2 numbers, expected one for each of 3 responses"),
        ("123", "returned '123', expected a list of numbers"),
        (None, "returned None, expected a list of numbers"),
        (4, "returned 4, expected a list of numbers"),
        (b"123", "returned b'123', expected a list of numbers"),
        ({1: 5, 2: 5, 3: 6}, "expected a list of numbers"),
        ({1, 2, 3}, "expected a list of numbers"),
        ([1, 2, float("nan")], r"something else than finite numbers \(response 2\)"),
        ([1, "2", 3], r"something else than finite numbers \(response 1\)"),
        ([True, 2, 3], r"something else than finite numbers \(response 0\)"),
        ([1, None, 3], "something else than finite numbers"),
        ([1, 2, 10**400], "something else than finite numbers"),
    ],
)
def test_what_a_function_must_not_return(numbers: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_trials(session(ROUNDS), lambda transcript: numbers)


# --- any text


def test_a_text_without_responses_is_all_instructions() -> None:
    found = find_trials(session("Nothing here.\n"))
    assert (found.num_trials, found.instructions, found.trial_of_response) == (0, (0, 14), ())


LINES = st.lists(st.sampled_from([*FRAGMENTS, "\n\n", "Block 1:\n", "You press <<A>>.\n", "You see B.\n"]), max_size=40)


@given(LINES, st.randoms(use_true_random=False), st.booleans())
def test_any_text_is_instructions_heading_and_trials_one_after_the_other(
    pieces: list[str], rng: Any, has_field: bool
) -> None:
    text = "".join(pieces)
    responses = find_responses(text).responses
    numbers = tuple(rng.choice((0, 1)) for _ in responses) if has_field else None
    found = find_trials(session(text, numbers))
    assert len(found.trial_of_response) == len(responses)
    assert found.instructions[0] == 0
    if not responses:
        return
    assert found.trial_of_response[0] == 0
    steps = {b - a for a, b in pairwise(found.trial_of_response)}
    assert steps <= {0, 1}
    assert found.trial_of_response[-1] + 1 == found.num_trials == len(found.headings)
    heading = found.headings[0]
    stands_before = heading is not None and heading[0] < found.char_spans[0][0]
    edges = [found.instructions, *([heading] if stands_before else []), *found.char_spans]
    assert all(before[1] == after[0] for before, after in pairwise(edges))
    for response, trial_idx in zip(responses, found.trial_of_response, strict=True):
        start, stop = found.char_spans[trial_idx]
        end = response.char_stop + (0 if response.unbalanced else 2)
        assert start <= response.char_start - 2 and end <= stop
    for trial_idx, heading in enumerate(found.headings):
        spans = found.shown_with(trial_idx, trial_idx)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        if heading is not None:
            assert "<<" not in text[slice(*heading)] and heading[1] <= found.char_spans[trial_idx][1]
