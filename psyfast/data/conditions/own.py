"""A user's own condition: a function of a transcript, and what is checked of what it returns."""

from __future__ import annotations

import re
from collections.abc import Callable

from psyfast.data.conditions.condition import Condition, Setting
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, RenderedText, Rendering
from psyfast.errors import UsageError

OwnFunction = Callable[[Transcript], RenderedText | Rendering | LeftOut]


def own_condition(function: OwnFunction) -> Condition:
    """The condition that a function is; its name is the function's, `_` as `-`. Raises UsageError."""
    name = getattr(function, "__name__", "").replace("_", "-")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name):
        raise UsageError(f"the condition {function!r} has no name to go by; define it with def NAME(transcript)")

    def render(transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
        return _checked(name, function(transcript), transcript)

    return Condition(name, render, is_own=True)


def _checked(name: str, found: object, transcript: Transcript) -> Rendering | LeftOut:
    where = f"condition '{name}', participant '{transcript.participant}'"
    if isinstance(found, LeftOut):
        return found
    rendering = Rendering((found,)) if isinstance(found, RenderedText) else found
    if not isinstance(rendering, Rendering) or not all(isinstance(text, RenderedText) for text in rendering.texts):
        raise UsageError(
            f"{where}: its function returned {type(found).__name__}, expected RenderedText, Rendering or LeftOut"
        )
    scored: set[int] = set()
    for text in rendering.texts:
        _check_spans(where, text, transcript.num_responses)
        indices = [response.response_idx for response in text.responses if response.is_scored]
        if twice := sorted(scored.intersection(indices)):
            raise UsageError(f"{where}: response {twice[0]} is scored in two texts; set is_scored=False in one of them")
        scored.update(indices)
    return rendering


def _check_spans(where: str, text: RenderedText, num_responses: int) -> None:
    """Responses in order, each of the source's, within the text, none twice or overlapping."""
    before, last_idx = 0, -1
    for response in text.responses:
        idx, start, stop = response.response_idx, response.char_start, response.char_stop
        # A `<<` without a partner stands nowhere but in the source's count.
        if not last_idx < idx < num_responses:
            raise UsageError(
                f"{where}: response {idx} follows {last_idx}, expected ascending numbers below {num_responses}"
            )
        if not before <= start <= stop <= len(text.text):
            raise UsageError(
                f"{where}: response {idx} is said to stand at {start} to {stop}; the one before ends at {before}, "
                f"the text at {len(text.text)}"
            )
        before, last_idx = stop, idx
