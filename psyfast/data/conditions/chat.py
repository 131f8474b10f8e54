"""`chat`: the session as a conversation under the model's chat template (PROTOCOL 7).

    You see J and F. You press <<J>>. You win.        user "You see J and F. You press ", assistant "J",
                                                      user ". You win."

The template sees a sign in the place of each response; what it makes of the conversation shows where responses stand.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from psyfast.data.clean import CleanedText, clean
from psyfast.data.conditions.chat_template import ChatTemplate, TemplateRefusal, signs_for
from psyfast.data.conditions.condition import Setting
from psyfast.data.encoded import Protocol
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, RenderedResponse, RenderedText, Rendering, Source
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER


@dataclass(frozen=True)
class _Turn:
    """A message; response_idx: of the source's response that an assistant's content is, None where it is none.

    runs_on: the content is text behind that response.
    """

    role: str
    content: str
    response_idx: int | None = None
    runs_on: bool = False


def render_chat(transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """The conversation under the setting's template; left out where the template refuses it."""
    template = setting.template
    assert template is not None, "the condition 'chat' is rendered for a model"
    template.require_turns()
    source = Source(transcript)
    turns, unscored = _exact_turns(source) if setting.protocol is Protocol.EXACT else _paper_turns(source)
    if not any(turn.response_idx is not None for turn in turns):
        return LeftOut("no_responses")
    try:
        text = _rendered(source, turns, template, notes_trimmed=setting.protocol is Protocol.EXACT)
    except TemplateRefusal:
        return LeftOut("template_refused")
    return Rendering((text,), unscored=unscored, details={"template_sha256": template.sha256})


def _exact_turns(source: Source) -> tuple[list[_Turn], dict[int, tuple[str, ...]]]:
    """Every response that is not empty is a turn of the assistant's; markers of empty ones go, too."""
    text = source.transcript.text
    turns: list[_Turn] = []
    unscored: dict[int, tuple[str, ...]] = {}
    said, start = "", 0
    for response_idx, response in enumerate(source.responses):
        if response.unbalanced:
            unscored[response_idx] = ("unbalanced_marker",)
            continue
        said += text[start : response.char_start - len(OPEN_MARKER)]
        start = response.char_stop + len(CLOSE_MARKER)
        content = text[response.char_start : response.char_stop]
        if not content.strip():
            unscored[response_idx] = ("empty",)
            continue
        turns += [_Turn("user", said), _Turn("assistant", content, response_idx)]
        said = ""
    turns.append(_Turn("user", said + text[start:]))
    return [turn for turn in turns if turn.content.strip()], unscored


def _paper_turns(source: Source) -> tuple[list[_Turn], dict[int, tuple[str, ...]]]:
    """The cleaned text and a full stop, cut at every marker; speakers alternate whatever kind of marker it is."""
    cleaned = clean(source.transcript.text)
    turns: list[_Turn] = []
    owned: set[int] = set()
    start = 0
    text = cleaned.text + "."
    cuts = [(found.start(), found.end()) for found in re.finditer(f"{OPEN_MARKER}|{CLOSE_MARKER}", text)]
    for part_idx, (stop, next_start) in enumerate([*cuts, (len(text), len(text))]):
        content, is_answer = text[start:stop], part_idx % 2 == 1
        if content.strip():
            owner = _owner(source, int(cleaned.source_idx[start])) if is_answer else None
            response_idx = None if owner in owned else owner
            if response_idx is not None:
                owned.add(response_idx)
            runs_on = response_idx is not None and _runs_on(source, response_idx, int(cleaned.source_idx[stop - 1]))
            turns.append(_Turn("assistant" if is_answer else "user", content, response_idx, runs_on))
        start = next_start
    unscored = {
        response_idx: _why_unscored(source, response_idx, cleaned)
        for response_idx in range(len(source.responses))
        if response_idx not in owned
    }
    return turns, unscored


def _owner(source: Source, char_idx: int) -> int | None:
    """The source response that a character lies in, or follows."""
    owner = bisect_right(source.responses, char_idx, key=attrgetter("char_start")) - 1
    return owner if owner >= 0 else None


def _runs_on(source: Source, response_idx: int, last_char_idx: int) -> bool:
    """Whether an answer that ends with a character of the source is more than the response that it is scored for."""
    response = source.responses[response_idx]
    return response.unbalanced or last_char_idx >= response.char_stop


def _why_unscored(source: Source, response_idx: int, cleaned: CleanedText) -> tuple[str, ...]:
    response = source.responses[response_idx]
    flags = {"unbalanced_marker"} if response.unbalanced else set()
    is_empty = not response.unbalanced and not source.transcript.text[response.char_start : response.char_stop].strip()
    if is_empty:
        flags.add("empty")
    if max(response.char_start, response.char_stop) > cleaned.source_stop:
        flags.add("truncated")
    elif not is_empty:
        flags.add("missed")
    return tuple(sorted(flags))


def _rendered(source: Source, turns: Sequence[_Turn], template: ChatTemplate, *, notes_trimmed: bool) -> RenderedText:
    """The template's text with the responses in it; where the template strips them, that is noted as `trimmed`.

    Raises TemplateRefusal, and ModelError where a response is lost.
    """
    answers = [turn for turn in turns if turn.response_idx is not None]
    signs = signs_for(source.transcript.text, len(answers))
    sign_of = {turn.response_idx: sign for turn, sign in zip(answers, signs, strict=True)}
    messages = [
        {"role": turn.role, "content": turn.content if turn.response_idx is None else sign_of[turn.response_idx]}
        for turn in turns
    ]
    text, places = template.with_signs(messages, signs)
    parts: list[str] = []
    responses: list[RenderedResponse] = []
    length = start = 0
    for turn, sign, place in zip(answers, signs, places, strict=True):
        content = turn.content.strip() if template.strips else turn.content
        parts += [text[start:place], content]
        length += place - start
        flags = ("runs_on",) if turn.runs_on else ("trimmed",) if notes_trimmed and content != turn.content else ()
        responses.append(_response(source, turn, (length, length + len(content)), template, flags))
        length += len(content)
        start = place + len(sign)
    parts.append(text[start:])
    return RenderedText("".join(parts), tuple(responses), template.turns)


def _response(
    source: Source, turn: _Turn, char_span: tuple[int, int], template: ChatTemplate, flags: tuple[str, ...]
) -> RenderedResponse:
    assert turn.response_idx is not None
    return RenderedResponse(
        turn.response_idx,
        *char_span,
        options=None if turn.runs_on else source.option_sets[turn.response_idx],
        options_uncertain=turn.response_idx in source.uncertain,
        close=template.turns.close,
        flags=flags,
    )
