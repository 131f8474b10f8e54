"""Choice sets found in a transcript: every condition of the rule on transcripts worked out by hand."""

from __future__ import annotations

import pytest
from encoding_cases import FRAGMENTS
from hypothesis import given
from hypothesis import strategies as st
from test_trials import session

from psyfast.data.auto_options import find_option_sets
from psyfast.data.responses import find_responses


def sets_of(text: str) -> list[tuple[str, ...] | None]:
    return list(find_option_sets(session(text)).sets)


def presses(answers: str) -> str:
    """A line for each answer, in one slot."""
    return "".join(f"You press <<{answer}>>.\n" for answer in answers.split(","))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("J,F,J,F,J,F,J,F", ("F", "J")),  # 8 responses, 2 labels
        ("J,F,J,F,J,F,J", None),  # 7 responses are fewer than 4 a label
        ("J,J,J,J,J,J,J,J", None),  # one label is no choice
        ("J,J,J,J,J,J,J,F", None),  # F was given once
        ("J,J,J,J,J,J,F,F", ("F", "J")),
        (",".join("JF" * 10 + "K"), ("F", "J")),  # 20 of 21 are 95.2 %
        (",".join("JF" * 9 + "K"), None),  # 18 of 19 are 94.7 %
        (",".join("ABCDEFGHIJKL" * 4), tuple("ABCDEFGHIJKL")),
        (",".join("ABCDEFGHIJKLM" * 4), None),  # 13 labels
        (" J ,F,J,F,J,F,J,F", ("F", "J")),  # trimmed
        ("J,F,J,F,,,J,F,J,F,", ("F", "J")),  # responses without an answer do not count
    ],
)
def test_a_slot_has_a_set(answers: str, expected: tuple[str, ...] | None) -> None:
    assert set(sets_of(presses(answers))) == {expected}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (",".join("123" * 4), ("1", "2", "3")),
        (",".join("01" * 4), ("0", "1")),
        (",".join("234" * 4), None),  # neither from 0 nor from 1
        (",".join("124" * 4), None),  # 3 is missing
        (",".join(["1", "2", "02"] * 4), None),
        (",".join(str(number) for number in range(1, 12)) + "," + ",".join(map(str, range(11, 0, -1))), None),
        (
            (",".join(map(str, range(1, 12))) + ",") * 3 + ",".join(map(str, range(1, 12))),
            tuple(map(str, range(1, 12))),
        ),
        (",".join(["5 coins", "6 coins"] * 4), None),
        (",".join(["1", "2", "pass"] * 4), ("1", "2", "pass")),
        (",".join(["x", "y"] * 40 + ["7", "7"]), ("x", "y")),  # 7 does not count, and 80 of 82 are 97.6 %
        (",".join(["9" * 5000, "8" * 5000] * 4), None),
    ],
)
def test_labels_with_digits_are_whole_numbers_one_after_the_other(
    answers: str, expected: tuple[str, ...] | None
) -> None:
    assert set(sets_of(presses(answers))) == {expected}


def test_slots_are_told_apart_by_the_last_two_words() -> None:
    text = "".join(f"First you choose <<{a}>>, then you take <<{b}>>.\n" for a, b in ("HM", "WP") * 4)
    assert sets_of(text) == [("H", "W"), ("M", "P")] * 8


def test_in_trials_of_several_lines_the_word_directly_after_counts_too() -> None:
    stages = "".join(f"You press <<{a}>> and arrive.\nYou press <<{b}>> to ask.\n" for a, b in ("BR", "JD") * 4)
    assert sets_of(stages) == [("B", "J"), ("D", "R")] * 8
    # On one line it does not: the two are one slot.
    one_line = stages.replace("arrive.\nYou", "arrive. You")
    assert set(sets_of(one_line)) == {("B", "D", "J", "R")}


# --- narrowing

ASKED = "Options: {}.\nYou choose <<{}>>. Q and E were fine.\n"


def asked(*pairs: tuple[str, str]) -> str:
    return "".join(ASKED.format(*pair) for pair in pairs)


def test_the_nearest_line_that_names_two_labels_narrows_and_stays_in_force() -> None:
    text = (
        "There are B, E and Q.\n"
        + asked(("B or E", "B"), ("B, E, Q", "E"), ("these", "Q"), ("only B", "B"), ("E and Q", "E"))
        + asked(*[("B, E, Q", "Q")] * 7)
    )
    # Named after the response on its own line: known before the next, but not what that one is asked.
    assert sets_of(text) == [("B", "E"), *[("B", "E", "Q")] * 3, ("E", "Q"), *[("B", "E", "Q")] * 7]


def test_for_the_first_response_the_whole_text_before_it_counts_and_no_single_line_need_name_two() -> None:
    text = "Key B is left.\nKey E is right.\nGo.\n" + presses(",".join("BEQ" * 4))
    assert sets_of(text)[0] == ("B", "E")


def test_for_a_second_response_on_a_line_what_follows_the_first_counts() -> None:
    line = "You see x. Pick <<{}>>. Now B or E: you choose <<{}>>.\n"
    text = "B, E, Q.\n" + "".join(line.format(a, b) for a, b in (("1", "B"), ("2", "E"), ("1", "Q"), ("2", "Q")) * 3)
    assert sets_of(text)[1::2] == [("B", "E")] * 12


def test_a_letter_that_is_a_word_does_not_narrow() -> None:
    text = presses(",".join("ABC" * 4))
    line = "A light goes on, and B too.\n"
    assert set(sets_of(text.replace("You", line + "You"))) == {("A", "B", "C")}
    listed = "Choose between A and B.\n"
    assert set(sets_of(text.replace("You", listed + "You"))) == {("A", "B")}
    # Beside two others it may be a label, and stays.
    beside = "Press B to look, C to bet, or A to sleep.\n"
    assert set(sets_of(beside + text)) == {("A", "B", "C")}


def test_a_longer_label_is_not_its_beginning() -> None:
    text = "Say left or left turn.\n" + presses(",".join(["left", "left turn", "right"] * 4))
    assert set(sets_of(text)) == {("left", "left turn")}


def test_a_label_of_several_words_is_no_article() -> None:
    answers = presses(",".join(["A lot", "A bit", "none"] * 4))
    assert set(sets_of("Say A lot or A bit.\n" + answers)) == {("A bit", "A lot")}


def test_a_set_that_the_text_never_names_is_uncertain() -> None:
    named = find_option_sets(session("Press J.\nOr F.\n" + presses(",".join("JF" * 4))))
    assert (named.uncertain, set(named.sets)) == ((), {("F", "J")})
    half = find_option_sets(session("Press J.\n" + presses(",".join("JF" * 4))))
    assert (half.uncertain, set(half.sets)) == (tuple(range(8)), {("F", "J")})


@given(st.lists(st.sampled_from([*FRAGMENTS, "You press <<J>>.\n", "You press <<F>>.\n", "J or F?\n"]), max_size=60))
def test_any_text_gives_a_set_or_none_for_every_response(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = find_option_sets(session(text))
    assert len(found.sets) == len(find_responses(text).responses)
    assert all(one is None or 2 <= len(set(one)) == len(one) <= 12 for one in found.sets)
    assert all(found.sets[idx] is not None for idx in found.uncertain)
