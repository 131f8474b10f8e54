"""Where a transcript's choice sets come from: its own field, a function of the caller's, or the transcript itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from psyfast.data.auto_options import find_option_sets
from psyfast.data.fields import read_options
from psyfast.data.records import Transcript
from psyfast.data.rows import FieldError, describe

ChooseOptions = Callable[[Transcript], Sequence[Any] | None]
"""A transcript's choice sets: one list of options for all its responses, or one list (or None) for each; None: none.

It sees the data's own sets as `transcript.options`.
"""

OptionSource = Literal["data", "auto"] | ChooseOptions
"""`data`: the field `options`. `auto`: that field, and for transcripts without it what PROTOCOL 4 finds in them."""


def with_choice_sets(transcript: Transcript, source: OptionSource) -> Transcript:
    """The transcript with its choice sets from a source.

    Raises FieldError naming `options` for what a function returns that is no choice set, or not one a response.
    """
    if source == "data":
        return transcript
    if callable(source):
        sets = _from_caller(source(transcript), transcript.num_responses)
        return replace(transcript, options=sets, uncertain_options=())
    if transcript.options is not None:
        return transcript
    found = find_option_sets(transcript)
    if not any(found.sets):
        return transcript
    return replace(transcript, options=found.sets, uncertain_options=found.uncertain)


def _from_caller(value: Any, num_responses: int) -> tuple[tuple[str, ...] | None, ...] | None:
    """What the caller's function returned, under the rules of the data's field; a wrong number is an error here."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise FieldError(
            "options", f"the function for options returned {describe(value)}, expected a list of options or of sets"
        )
    items = [list(item) if isinstance(item, (tuple, list)) else item for item in value]
    is_by_response = any(item is None or isinstance(item, list) for item in items)
    if is_by_response and len(items) != num_responses:
        raise FieldError(
            "options",
            f"the function for options returned {len(items)} sets, expected one for each of {num_responses} responses",
        )
    return read_options(items, num_responses, Counter())
