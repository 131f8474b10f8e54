"""A model's chat template: messages in, one text out, with the places of what stands in them (PROTOCOL 7)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from jinja2 import TemplateError

from psyfast.data.rendering import Turns
from psyfast.errors import ModelError

Message = dict[str, str]

_PRIVATE_USE = range(0xE000, 0xF900)
"""Code points that stand for nothing, so that a text hardly has one."""


class TemplateRefusal(ValueError):  # noqa: N818 - the caller decides whether it is an error
    """A template's own complaint about a conversation, as where it wants the user to begin."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template by its Jinja source; name: of the model, for messages. render_messages: messages to text, without a
    generation prompt; raises jinja2.TemplateError.
    """

    name: str
    source: str
    render_messages: Callable[[list[Message]], str]

    @cached_property
    def sha256(self) -> str:
        """Identifies the template by its source and by a conversation under it: models of one source may have other
        special tokens to put into it.
        """
        return hashlib.sha256(json.dumps([self.source, self._sample(_sign(0xE000, 3))]).encode()).hexdigest()

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as one text. Raises TemplateRefusal."""
        try:
            return self.render_messages(list(messages))
        except (TemplateError, TypeError) as error:  # what a template raises, and what it stumbles over
            raise TemplateRefusal(f"{type(error).__name__}: {error}") from error

    @cached_property
    def strips(self) -> bool:
        """Whether white space at the edges of an assistant's content is taken away."""
        answer = _sign(0xE000, 3)
        return f" {answer} " not in self._sample(f" {answer} ")

    @cached_property
    def turns(self) -> Turns:
        """What stands around the assistant's content in the middle of a conversation."""
        question, answer, last = (_sign(0xE000, idx) for idx in (2, 3, 4))
        text = self._sample(answer)
        places = [text.find(sign) for sign in (question, answer, last)]
        if -1 in places or sorted(places) != places:
            raise self._wrong("leaves out or moves a message")
        return Turns(
            text[places[0] + len(question) : places[1]],
            text[places[1] + len(answer) : places[2]],
        )

    def require_turns(self) -> None:
        """ModelError for a template under which no response can be found."""
        _ = self.turns

    def with_signs(self, messages: Sequence[Message], signs: Sequence[str]) -> tuple[str, list[int]]:
        """The conversation, and where each sign stands in it. ModelError if one is missing, moved or doubled."""
        text = self.render(messages)
        places = [text.find(sign) for sign in signs]
        if -1 in places:
            raise self._wrong(f"leaves out an assistant's message (the {places.index(-1) + 1}th)")
        if sorted(places) != places:
            raise self._wrong("puts the assistant's messages into another order")
        if any(text.find(sign, place + 1) >= 0 for sign, place in zip(signs, places, strict=True)):
            raise self._wrong("repeats an assistant's message")
        return text, places

    def _sample(self, answer: str) -> str:
        contents = (_sign(0xE000, 0), _sign(0xE000, 1), _sign(0xE000, 2), answer, _sign(0xE000, 4))
        try:
            return self.render(conversation(contents))
        except TemplateRefusal as error:
            raise self._wrong(f"refuses a plain conversation of five turns ({error})") from error

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"{self.name}: its chat template {what}, so responses cannot be found in it; leave out the condition 'chat'"
        )


def conversation(contents: Sequence[str]) -> list[Message]:
    """Messages whose speakers alternate; the user begins."""
    return [{"role": ("user", "assistant")[idx % 2], "content": content} for idx, content in enumerate(contents)]


def signs_for(text: str, num_signs: int) -> list[str]:
    """Character sequences that do not occur in a text, none part of another."""
    free = next((code for code in _PRIVATE_USE if chr(code) not in text), None)
    if free is None:
        raise ModelError("a text uses every private-use character, so that none can mark its responses in a chat")
    return [_sign(free, idx) for idx in range(num_signs)]


def _sign(code: int, idx: int) -> str:
    # Begun by two, ended by one: what stands between two signs never makes a third of them.
    return f"{chr(code)}{chr(code)}{idx}{chr(code)}"
