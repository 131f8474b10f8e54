"""Other letters for options: what changes, what stands against it, and what is drawn."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from encoding_cases import FRAGMENTS
from hypothesis import given
from hypothesis import strategies as st
from test_trials import session

from psyfast.data.records import Transcript
from psyfast.data.relabel import Refused, Relabelled, letter_positions, option_letters, relabel
from psyfast.data.responses import find_responses
from psyfast.errors import UsageError

LINE = "You press <<{}>>. "


def offered(text: str, *letters: str, participant: str = "1") -> Transcript:
    """A text whose responses all have these options."""
    transcript = session(text)
    return replace(transcript, options=(tuple(letters),) * transcript.num_responses, participant=participant)


def against(text: str, *letters: str) -> str | None:
    found = letter_positions(session(text), frozenset(letters))
    return found.reason if isinstance(found, Refused) else None


def done(transcript: Transcript, seed: int = 0) -> Relabelled:
    found = relabel(transcript, seed)
    assert isinstance(found, Relabelled)
    return found


TEXT = "Press J or F ('J' is left; JF is none, F1 neither).\nYou press <<F>>.\nHad you pressed J: 3.\nYou press << J>>."


def test_every_letter_on_its_own_is_exchanged_and_nothing_else() -> None:
    swapped = next(found for seed in range(20) if (found := done(offered(TEXT, "J", "F"), seed)).mapping["J"] == "F")
    assert swapped.mapping == {"J": "F", "F": "J"}
    assert swapped.text == (
        "Press F or J ('F' is left; JF is none, F1 neither).\nYou press <<J>>.\nHad you pressed F: 3.\nYou press << F>>."
    )
    assert [swapped.text[slice(*span)] for span in swapped.char_spans] == ["J", " F"]
    assert [TEXT[place] for place in swapped.positions] == ["J", "F", "J", "F", "J", "J"]
    assert [swapped.rewrite(option) for option in ("J", "F", "sample F", "JF", "K")] == [
        "F",
        "J",
        "sample J",
        "JF",
        "K",
    ]


def test_the_draw_depends_on_seed_and_key_alone_and_every_permutation_comes_up() -> None:
    text = LINE.format("B") * 3 + "B, E and Q."
    draws = Counter(
        tuple(done(offered(text, "E", "Q", "B", participant=str(idx)), seed=7).mapping.values()) for idx in range(1200)
    )
    assert len(draws) == 6
    # 200 each on average, sd 12.9: five of them on either side.
    assert all(135 < count < 265 for count in draws.values())
    one, same = offered(text, "E", "Q", "B"), offered(text, "B", "Q", "E")
    assert done(one, 3).mapping == done(same, 3).mapping
    assert len({tuple(done(one, seed).mapping.values()) for seed in range(60)}) == 6


def test_letters_are_those_of_the_datas_sets_else_those_found() -> None:
    assert option_letters(offered("<<J>> <<F>>", "J", "F", "10", "left")) == {"J", "F"}
    assert option_letters(session(LINE.format("J") * 4 + LINE.format("F") * 4)) == {"J", "F"}
    assert relabel(session("You say <<J>>."), 0) == Refused("too_few_letters")
    assert relabel(offered("You say <<J>>.", "J", "left"), 0) == Refused("too_few_letters")


@pytest.mark.parametrize(
    ("text", "letters", "reason"),
    [
        ("A coin is drawn. " + LINE.format("A"), "AB", "word"),
        ("Now I see it. " + LINE.format("I"), "IB", "word"),
        ("It takes a while. " + LINE.format("a"), "ab", "word"),
        ("Box A holds coins, Box B too. " + LINE.format("A"), "AB", None),
        ("Press A to stay. " + LINE.format("A"), "AB", None),
        ("Use A to stay. " + LINE.format("A"), "AB", "word"),
        ("It is between A and B here. " + LINE.format("A"), "AB", None),
        ("B or A is right. " + LINE.format("A"), "AB", None),
        ("Stock A. Stock B. A 50 % chance. " + LINE.format("A"), "AB", None),
        ("You receive a reward. " + LINE.format("A"), "AB", None),
        ("It is a B. " + LINE.format("B"), "AB", "after_article"),
        ("It is an F. " + LINE.format("F"), "FJ", "after_article"),
        ("An F it is. " + LINE.format("F"), "FJ", "after_article"),
        ("Press a 'J' key. " + LINE.format("J"), "FJ", "after_article"),
        ("F's turn. " + LINE.format("F"), "FJ", "apostrophe"),
        ("I’m here. " + LINE.format("I"), "IJ", "apostrophe"),
        ("Don't. " + LINE.format("t"), "tj", "apostrophe"),
        ("'F' or 'J'. N' is no house. " + LINE.format("F"), "FJN", None),
        ("In the U.S. army. " + LINE.format("U"), "UJ", "abbreviation"),
        ("Had you pressed U. You lose. " + LINE.format("U"), "UJ", None),
        ("A T-shirt. " + LINE.format("T"), "TJ", "compound"),
        ("Press f now. " + LINE.format("F"), "FJ", "other_case"),
        ("The F key. " + LINE.format("f"), "fj", "other_case"),
        ("F and f are two. " + LINE.format("F"), "Ff", None),
        ("Words, e.g. this, i.e. it. " + LINE.format("E"), "EGI", None),
        ("The stock(s). It's mine, don't. " + LINE.format("S"), "ST", None),
        ("Along the x-axis. " + LINE.format("X"), "XY", None),
    ],
)
def test_what_stands_against_it(text: str, letters: str, reason: str | None) -> None:
    assert against(text, *letters) == reason


def test_a_refusal_names_the_letter_and_its_place() -> None:
    text = LINE.format("F") + "In the U.S. army."
    assert letter_positions(session(text), frozenset("FU")) == Refused("abbreviation", "U", text.index("U."))


def test_any_relabelling_keeps_spans_and_comes_back() -> None:
    transcript = offered(TEXT, "J", "F", "K")
    found = done(transcript, 5)
    responses = find_responses(found.text).responses
    assert [(one.char_start, one.char_stop) for one in responses] == list(found.char_spans)
    back = {new: old for old, new in found.mapping.items()}
    restored = "".join(back[char] if idx in found.positions else char for idx, char in enumerate(found.text))
    assert restored == TEXT


@pytest.mark.parametrize("seed", [None, "1", 1.0, True])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(UsageError, match="expected a whole number"):
        relabel(offered(TEXT, "J", "F"), seed)


PIECES = st.lists(
    st.sampled_from([*FRAGMENTS, "A", "B", "b", "a B", "B's", "Box A ", "B or A", "\n", " "]), max_size=30
)


@given(PIECES, st.integers())
def test_any_text_is_refused_for_an_occurrence_or_exchanged_letter_by_letter(pieces: list[str], seed: int) -> None:
    text = "".join(pieces)
    transcript = offered(text + "<<A>>", "A", "B")
    text, found = transcript.text, relabel(transcript, seed)
    if isinstance(found, Refused):
        assert found.char_idx is not None and text[found.char_idx] == found.letter in {"A", "B", "a", "b"}
        return
    alone = [m.start() for m in re.finditer(r"(?<!\w)[AB](?![\w\u0300-\u036f])", text)]
    assert list(found.positions) == alone and sorted(found.mapping) == sorted(found.mapping.values()) == ["A", "B"]
    expected = [found.mapping[char] if idx in alone else char for idx, char in enumerate(text)]
    assert found.text == "".join(expected)
    assert [(r.char_start, r.char_stop) for r in find_responses(found.text).responses] == list(found.char_spans)
