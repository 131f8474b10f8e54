"""What each condition shows of a transcript, worked out by hand; and what holds for all of them on any text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from encoding_cases import FRAGMENTS
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trials import session
from tokenizers_real import tiny_tokenizer

from psyfast.data.conditions.condition import Setting
from psyfast.data.conditions.persona_pool import PersonaPool
from psyfast.data.conditions.registry import condition_of, conditions_of
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encode import Protocol, encode_text
from psyfast.data.encoded import Limits
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.rendering import LeftOut, RenderedResponse, RenderedText, Rendering, Source
from psyfast.data.responses import find_responses
from psyfast.errors import UsageError

TEXT = (
    "Press J or F.\n\nBlock 1\nYou press <<J>>. Win.\nYou press <<F>>.\n\nBlock 2\nYou press <<J>>. You are <<25>>.\n"
)
WITHOUT_TEMPLATE = (
    "plain", "persona", "shuffled-persona", "discrete", "no-instructions", "no-history", "history=1", "history=7", "relabel",
)  # fmt: skip


def person(number: int, text: str = TEXT, study: str = "s", **persona: str) -> Transcript:
    return replace(session(text), participant=str(number), study=study, persona=persona)


def rendering(name: str, transcript: Transcript, *others: Transcript, seed: int = 0) -> Rendering | LeftOut:
    renderer = Renderer((condition_of(name),), Setting(seed=seed)).with_pools([transcript, *others])
    (found,) = renderer.render(transcript)
    return found


def texts(found: Rendering | LeftOut) -> list[str]:
    assert isinstance(found, Rendering), found
    return [text.text for text in found.texts]


def shown(found: Rendering | LeftOut) -> list[list[tuple[int, str, bool]]]:
    """Of each text the responses: number, what stands at the span, whether it is scored."""
    assert isinstance(found, Rendering), found
    return [
        [(r.response_idx, text.text[r.char_start : r.char_stop], r.is_scored) for r in text.responses]
        for text in found.texts
    ]


def test_plain_is_the_source() -> None:
    assert texts(rendering("plain", person(1))) == [TEXT]


def test_persona_asks_for_what_is_known_in_the_study_s_order() -> None:
    known = {"BIS-11": "61", "age": "25.0", "clinical diagnosis": "depression", "education": "College"}
    before = (
        "Interviewer: What is your age?\nInterviewee: 25.0\n\n"
        "Interviewer: What is your highest level of education?\nInterviewee: College\n\n"
        "Interviewer: Do you have any clinical diagnoses?\nInterviewee: depression\n\n"
        "Interviewer: What is your BIS-11 score?\nInterviewee: 61\n\n"
    )
    transcript = person(1, **known)
    assert texts(rendering("persona", transcript)) == [before + TEXT]
    assert shown(rendering("persona", transcript)) == shown(rendering("plain", transcript))
    only_age = "Interviewer: What is your age?\nInterviewee: 25.0\n\n"
    assert texts(rendering("persona=gender+age", transcript)) == [only_age + TEXT]
    assert rendering("persona=gender", transcript) == LeftOut("no_persona")
    assert rendering("persona", person(1)) == LeftOut("no_persona")


def test_a_persona_that_looks_like_a_marker_shifts_no_response() -> None:
    transcript = person(1, nationality="<<script>> \u202e")
    assert shown(rendering("persona", transcript)) == shown(rendering("plain", transcript))


def test_shuffled_personas_go_once_around_each_study() -> None:
    people = [person(number, age=str(number)) for number in range(20)] + [person(0, study="lone", age="99")]
    given_to: dict[str, str] = {}
    for transcript in people[:-1]:
        (text,) = texts(rendering("shuffled-persona", transcript, *people))
        given_to[transcript.participant] = text.split("Interviewee: ")[1].split("\n")[0]
    assert sorted(given_to.values()) == sorted(given_to)
    assert all(own != other for own, other in given_to.items())
    assert rendering("shuffled-persona", people[-1], *people) == LeftOut("no_other_persona")
    assert rendering("shuffled-persona", person(3), *people) == LeftOut("no_persona")


def test_whose_persona_is_given_depends_on_seed_and_keys_alone() -> None:
    people = [person(number, age=str(number)) for number in range(20)]

    def circle(order: Sequence[Transcript], seed: int) -> list[Any]:
        pool = PersonaPool(order, PERSONA_FIELDS, seed)
        return [pool.given_to(transcript) for transcript in people]

    assert circle(people, 1) == circle(people[::-1], 1)
    assert circle(people, 1) != circle(people, 2)


def test_discrete_keeps_single_capital_letters_marked() -> None:
    text = "a <<J>> b << J >> c <<j>> d <<JJ>> e <<É>> f <<>> g <<Z>>."
    found = rendering("discrete", session(text))
    assert texts(found) == ["a <<J>> b  J  c j d JJ e É f  g <<Z>>."]
    assert shown(found) == [[(0, "J", True), (6, "Z", True)]]
    assert isinstance(found, Rendering)
    assert found.flags_of_unscored(1) == ("unmarked",)
    assert rendering("discrete", session("<<j>> <<12>>")) == LeftOut("no_single_letter")


def test_no_instructions_begins_with_the_first_block() -> None:
    assert texts(rendering("no-instructions", person(1))) == [TEXT[TEXT.index("Block 1") :]]
    assert rendering("no-instructions", session("You press <<J>>.\nYou press <<F>>.\n")) == LeftOut("no_instructions")
    assert rendering("no-instructions", session("nothing")) == LeftOut("no_trials")


def in_trials() -> Transcript:
    """The text with three trials by its own field; without it, each of its blocks would be one."""
    return replace(person(1), trials=(1.0, 2.0, 3.0, 3.0))


def test_no_history_shows_each_trial_under_its_block() -> None:
    before, first, second = "Press J or F.\n\n", "Block 1\n", "Block 2\n"
    found = rendering("no-history", in_trials())
    assert texts(found) == [
        before + first + "You press <<J>>. Win.\n",
        before + first + "You press <<F>>.\n",
        before + "\n" + second + "You press <<J>>. You are <<25>>.\n",
    ]
    assert shown(found) == [[(0, "J", True)], [(1, "F", True)], [(2, "J", True), (3, "25", True)]]


def test_history_scores_the_last_trial_and_all_of_the_first_text() -> None:
    found = rendering("history=1", in_trials())
    assert texts(found)[0] == TEXT[: TEXT.index("\nBlock 2")]
    assert shown(found) == [[(0, "J", True), (1, "F", True)], [(1, "F", False), (2, "J", True), (3, "25", True)]]
    assert texts(rendering("history=7", in_trials())) == [TEXT]


def test_a_function_for_trials_goes_before_the_rules() -> None:
    setting = Setting(decide_trials=lambda transcript: [0, 0, 0, 1])
    (found,) = Renderer((condition_of("no-history"),), setting).render(person(1))
    assert [[idx for idx, _, _ in text] for text in shown(found)] == [[0, 1, 2], [3]]


def test_relabel_changes_options_with_the_text() -> None:
    transcript = replace(person(1), options=(("J", "F"),) * 3 + (None,))
    swapped = next(
        found
        for seed in range(20)
        if isinstance(found := rendering("relabel", transcript, seed=seed), Rendering)
        and found.details["mapping"] == {"F": "J", "J": "F"}
    )
    assert texts(swapped) == [TEXT.translate(str.maketrans("JF", "FJ"))]
    assert [response.options for response in swapped.texts[0].responses] == [("F", "J")] * 3 + [None]
    assert rendering("relabel", replace(session("<<J>>"), options=(("J",),))) == LeftOut("refused_too_few_letters")


@settings(deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join), st.sampled_from(WITHOUT_TEMPLATE))
def test_every_span_cuts_the_source_s_response(text: str, name: str) -> None:
    transcript = replace(session(text), persona={"age": "25.0"})
    found = rendering(name, transcript, person(2, age="30.0"))
    if isinstance(found, LeftOut):
        return
    source = find_responses(text).responses
    scored: list[int] = []
    for one in found.texts:
        for response in one.responses:
            cut = one.text[response.char_start : response.char_stop]
            wanted = text[source[response.response_idx].char_start : source[response.response_idx].char_stop]
            assert len(cut) == len(wanted)
            assert cut == wanted or name == "relabel"
        for protocol in Protocol:
            encoded = encode_text(one, tiny_tokenizer(" <<", ">>."), protocol, Limits())
            assert [r.response_idx for r in encoded.responses] == [r.response_idx for r in one.responses if r.is_scored]
        scored += [response.response_idx for response in one.responses if response.is_scored]
    assert len(scored) == len(set(scored))
    if name != "discrete":
        assert sorted(scored) == list(range(len(source)))


# --- names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no condition was named"),
        (("plane",), "condition 'plane' is unknown.*did you mean 'plain'"),
        (("plain", "chat", "plain"), "condition 'plain' was named 2 times"),
        (("history",), "condition 'history' is unknown"),
        (("history=",), "names no number of trials"),
        (("history=0",), "without any it is no-history"),
        (("history=05",), "names no number of trials"),
        (("history=-1",), "names no number of trials"),
        (("persona=",), "no persona field is called ''"),
        (("persona=Age",), "no persona field is called 'Age'.*did you mean 'age'"),
        (("persona=age+age",), "names a field twice"),
        (("relabel=3",), "condition 'relabel=3' is unknown"),
    ],
)
def test_what_is_no_condition(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conditions_of(names)


# --- a user's own


def think_first(transcript: Transcript) -> RenderedText:
    return Source(transcript).join(["Think before you answer.\n", (0, len(transcript.text))])


def test_an_own_condition_goes_by_its_function_s_name() -> None:
    plain, own = conditions_of(["plain"], [think_first])
    assert (plain.name, own.name, own.is_own) == ("plain", "think-first", True)
    assert texts(own.render(person(1), Setting())) == ["Think before you answer.\n" + TEXT]


def test_own_names_are_checked() -> None:
    def plain(transcript: Transcript) -> RenderedText:
        return think_first(transcript)

    with pytest.raises(UsageError, match="'plain' comes with psyfast"):
        conditions_of(["chat"], [plain])
    with pytest.raises(UsageError, match="has no name to go by"):
        conditions_of([], [lambda transcript: None])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("span", [(-5, 3), (9, 2), (0, len(TEXT) + 1)])
def test_a_span_beyond_the_text_is_refused(span: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="is none of its text"):
        Source(person(1)).join([span])


def spans(*places: tuple[int, int, int], text: str = TEXT) -> RenderedText:
    return RenderedText(text, tuple(RenderedResponse(*place) for place in places))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("a text", "returned str, expected RenderedText"),
        (None, "returned NoneType"),
        (Rendering(("a text",)), "expected RenderedText"),  # type: ignore[arg-type]
        (spans((0, 0, 1), (0, 2, 3)), "response 0 follows 0"),
        (spans((2, 0, 1), (1, 2, 3)), "response 1 follows 2"),
        (spans((4, 0, 1)), "ascending numbers below 4"),
        (spans((-1, 0, 1)), "ascending numbers below 4"),
        (spans((0, 5, 3)), "stand at 5 to 3"),
        (spans((0, 0, 5), (1, 4, 6)), "the one before ends at 5"),
        (spans((0, 0, 99), text="short"), "the text at 5"),
        (Rendering((spans((0, 0, 1)), spans((0, 0, 1)))), "response 0 is scored in two texts"),
        (spans((0, 0.0, 1)), "expected whole numbers"),  # type: ignore[arg-type]
        (RenderedText(TEXT, iter(())), "expected a tuple of RenderedResponse"),  # type: ignore[arg-type]
        (RenderedText(b"text", ()), "texts that are strings"),  # type: ignore[arg-type]
        (spans(text="\ud800"), "cannot be written as JSON"),
        (Rendering((spans(),), details={"a": object()}), "cannot be written as JSON"),
        (Rendering(iter(())), "expected RenderedText"),  # type: ignore[arg-type]
        (LeftOut(None), "the reason of LeftOut is None"),  # type: ignore[arg-type]
        (RenderedText(TEXT, (RenderedResponse(0, 0, 1, options=("J", "F")),)), "options .* expected as many as"),
    ],
)
def test_what_an_own_condition_returns_is_checked(returned: Any, message: str) -> None:
    def mine(transcript: Transcript) -> Any:
        return returned

    (condition,) = conditions_of([], [mine])
    with pytest.raises(UsageError, match=f"condition 'mine', participant '1': .*{message}"):
        condition.render(person(1), Setting())
