"""A user's own condition: a function of a transcript, and what is checked of what it returns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from psyfast.data.conditions.condition import Condition, Setting
from psyfast.data.options import usable_sets
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, RenderedResponse, RenderedText, Rendering
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
        if not isinstance(found.reason, str):
            raise UsageError(f"{where}: the reason of LeftOut is {found.reason!r}, expected a few words")
        return found
    rendering = Rendering((found,)) if isinstance(found, RenderedText) else found
    if (
        not isinstance(rendering, Rendering)
        or not _is_sequence_of(RenderedText, rendering.texts)
        or not all(isinstance(text.text, str) for text in rendering.texts)
    ):
        raise UsageError(
            f"{where}: its function returned {type(found).__name__}, expected RenderedText, Rendering or LeftOut with "
            "texts that are strings"
        )
    try:
        json.dumps([text.text for text in rendering.texts], ensure_ascii=False).encode()
        json.dumps(dict(rendering.details))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: its texts or details cannot be written as JSON ({error})") from error
    option_sets = usable_sets(transcript.options, transcript.num_responses)
    scored: set[int] = set()
    for text in rendering.texts:
        _check_spans(where, text, transcript.num_responses)
        _check_options(where, text, option_sets)
        indices = [response.response_idx for response in text.responses if response.is_scored]
        if twice := sorted(scored.intersection(indices)):
            raise UsageError(f"{where}: response {twice[0]} is scored in two texts; set is_scored=False in one of them")
        scored.update(indices)
    return rendering


def _is_sequence_of(kind: type, values: object) -> bool:
    return isinstance(values, (tuple, list)) and all(isinstance(value, kind) for value in values)


def _check_spans(where: str, text: RenderedText, num_responses: int) -> None:
    """Responses in order, each of the source's, within the text, none twice or overlapping."""
    if not _is_sequence_of(RenderedResponse, text.responses):
        raise UsageError(
            f"{where}: the responses of a text are {text.responses!r}, expected a tuple of RenderedResponse"
        )
    before, last_idx = 0, -1
    for response in text.responses:
        idx, start, stop = response.response_idx, response.char_start, response.char_stop
        if not all(type(number) is int for number in (idx, start, stop)):
            raise UsageError(f"{where}: response {idx!r} stands at {start!r} to {stop!r}, expected whole numbers (int)")
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


def _check_options(where: str, text: RenderedText, option_sets: Sequence[tuple[str, ...] | None]) -> None:
    """Where a response has options, as many as the source's: each is another spelling of the one in its place."""
    for response in text.responses:
        own, source = response.options, option_sets[response.response_idx]
        if own is not None and (source is None or len(own) != len(source)):
            raise UsageError(
                f"{where}: response {response.response_idx} has the options {own!r}, expected as many as the source's, in "
                f"their order: {source!r}"
            )
