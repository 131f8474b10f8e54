"""Sessions as conversations: what the template sees, where responses stand afterwards, and templates that lose one."""

from __future__ import annotations

import pytest
from encoding_cases import FRAGMENTS, flags
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from test_trials import session
from tokenizers_real import tiny_tokenizer

from psyfast.data.conditions.chat_template import ChatTemplate, Message
from psyfast.data.conditions.condition import Setting
from psyfast.data.conditions.registry import condition_of
from psyfast.data.encode import Protocol, encode_text
from psyfast.data.encoded import Limits
from psyfast.data.rendering import LeftOut, RenderedText, Rendering
from psyfast.data.responses import find_responses
from psyfast.errors import ModelError

TURNS = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}[/]{% endfor %}"
STRIPPED = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content | trim }}[/]{% endfor %}"
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}[{{ m.role[0] }}]{{ m.content }}[/]{% endfor %}"
)


def template_of(source: str) -> ChatTemplate:
    environment = ImmutableSandboxedEnvironment()

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = refuse
    compiled = environment.from_string(source)

    def render(messages: list[Message]) -> str:
        return compiled.render(messages=messages)

    return ChatTemplate("my-model", source, render)


def chat(text: str, source: str = TURNS, protocol: Protocol = Protocol.EXACT) -> Rendering | LeftOut:
    return condition_of("chat").render(session(text), Setting(protocol, template=template_of(source)))


def only_text(found: Rendering | LeftOut) -> RenderedText:
    assert isinstance(found, Rendering), found
    (text,) = found.texts
    return text


def cuts(text: RenderedText) -> list[tuple[int, str]]:
    return [(r.response_idx, text.text[r.char_start : r.char_stop]) for r in text.responses]


def test_responses_are_the_assistant_s_turns() -> None:
    text = only_text(chat("You press <<J>>. You win.\nYou say << yes >>."))
    assert text.text == "[u]You press [/][a]J[/][u]. You win.\nYou say [/][a] yes [/][u].[/]"
    assert cuts(text) == [(0, "J"), (1, " yes ")]
    assert text.turns is not None
    assert (text.turns.open, text.turns.close) == ("[/][a]", "[/][u]")
    assert {r.close for r in text.responses} == {"[/][u]"}


def test_a_template_may_strip_what_it_shows() -> None:
    text = only_text(chat("You say << yes >>. So <<no>>.", STRIPPED))
    assert text.text == "[u]You say[/][a]yes[/][u]. So[/][a]no[/][u].[/]"
    assert cuts(text) == [(0, "yes"), (1, "no")]
    encoded = encode_text(text, tiny_tokenizer(), Protocol.EXACT, Limits())
    assert [("trimmed" in one) for one in flags(encoded)] == [True, False]


def test_empty_responses_keep_their_rows_and_join_the_turns_around_them() -> None:
    found = chat("a <<>> b << >> c <<J>> d <<K")
    assert only_text(found).text == "[u]a  b  c [/][a]J[/][u] d <<K[/]"
    assert isinstance(found, Rendering)
    assert found.unscored == {0: ("empty",), 1: ("empty",), 3: ("unbalanced_marker",)}


def test_turns_without_text_are_left_out() -> None:
    assert only_text(chat("<<J>><<F>> \n")).text == "[a]J[/][a]F[/]"
    assert chat("nothing marked") == LeftOut("no_responses")


def test_under_paper_the_text_is_cleaned_and_ends_with_a_full_stop() -> None:
    found = chat("You say <<-5 >>.\nYou press <<J>> <<cut", protocol=Protocol.PAPER)
    assert only_text(found).text == "[u]You say [/][a] -5[/][u].\nYou press [/][a]J[/][u] .[/]"
    assert cuts(only_text(found)) == [(0, " -5"), (1, "J")]
    assert isinstance(found, Rendering)
    assert found.unscored == {2: ("truncated", "unbalanced_marker")}


def test_under_paper_speakers_alternate_at_every_marker() -> None:
    """A stray close marker turns the roles round, as it does in the study."""
    found = chat("a >> b <<J>> c <<K>> d", protocol=Protocol.PAPER)
    assert only_text(found).text == "[u]a[/][a] b [/][u]J[/][a] c [/][u]K[/][a] d.[/]"
    assert isinstance(found, Rendering)
    assert cuts(only_text(found)) == [(0, " c "), (1, " d.")]
    assert [response.flags for response in only_text(found).responses] == [("runs_on",)] * 2
    assert all(
        not response.flags
        for response in only_text(chat("a <<J>> <<skip>> <<- 5 >>", protocol=Protocol.PAPER)).responses
    )


def test_the_paper_scan_finds_the_template_s_turns() -> None:
    text = only_text(chat("You press <<J>>. Then <<F>>.", protocol=Protocol.PAPER))
    tokenizer = tiny_tokenizer("[/][a]", "[/][u]")
    encoded = encode_text(text, tokenizer, Protocol.PAPER, Limits())
    found = [tokenizer.token_strings(encoded.ids[r.token_start : r.token_stop]) for r in encoded.responses]
    assert found == [("J",), ("F",)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "leaves out or moves",
        ),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "leaves out or moves"),
        ("{% for m in messages[-3:] %}{{ m.content }}{% endfor %}", "leaves out an assistant's message"),
        (TURNS + "{{ messages[1].content }}", "repeats an assistant's message"),
        ("{{ raise_exception('never') }}", "refuses a plain conversation.*never"),
        ("{{ messages[0].content + 1 }}", "refuses a plain conversation"),
    ],
)
def test_a_template_that_loses_a_response_is_named(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"my-model: its chat template {message}"):
        chat("You press <<J>>. Then <<F>>. Then <<K>>.", source)


def test_a_conversation_that_the_template_refuses_is_left_out() -> None:
    assert isinstance(chat("You press <<J>>. Then <<F>>.", ALTERNATING), Rendering)
    assert chat("You press <<J>><<F>>.", ALTERNATING) == LeftOut("template_refused")
    assert chat("<<J>>. Then", ALTERNATING) == LeftOut("template_refused")


def test_what_stands_between_two_signs_makes_no_third() -> None:
    nothing_around = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text = only_text(chat("<<A>>2<<B>>0<<C>>1<<D>>", nothing_around))
    assert text.text == "A2B0C1D"
    assert cuts(text) == [(0, "A"), (1, "B"), (2, "C"), (3, "D")]


def test_signs_are_not_those_of_the_text() -> None:
    text = "\ue0000\ue000 <<J>> \ue0011\ue001 <<F>>"
    assert cuts(only_text(chat(text))) == [(0, "J"), (1, "F")]


@settings(deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join), st.sampled_from([TURNS, STRIPPED]))
def test_every_response_has_a_turn_or_a_reason(text: str, source: str) -> None:
    responses = find_responses(text).responses
    found = chat(text, source)
    if isinstance(found, LeftOut):
        assert all(r.unbalanced or not text[r.char_start : r.char_stop].strip() for r in responses)
        return
    rendered = only_text(found)
    assert sorted([r.response_idx for r in rendered.responses] + list(found.unscored)) == list(range(len(responses)))
    for response_idx, cut in cuts(rendered):
        wanted = text[responses[response_idx].char_start : responses[response_idx].char_stop]
        assert cut == (wanted.strip() if source == STRIPPED else wanted)
    for protocol in Protocol:
        paper = chat(text, source, protocol)
        if isinstance(paper, Rendering):
            encode_text(only_text(paper), tiny_tokenizer("[/][a]", "[/][u]"), protocol, Limits())
            assert {r.response_idx for r in only_text(paper).responses} | set(paper.unscored) == set(
                range(len(responses))
            )
