"""`relabel`: other letters for the options, consistently through the text (PROTOCOL 7)."""

from __future__ import annotations

from dataclasses import replace

from psyfast.data.conditions.condition import Setting
from psyfast.data.records import Transcript
from psyfast.data.relabel import Refused, relabel
from psyfast.data.rendering import LeftOut, RenderedText, Rendering, Source


def render_relabel(transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """The source under a drawn permutation of its letters; the options with it. Details: the mapping, old to new."""
    found = relabel(transcript, setting.seed)
    if isinstance(found, Refused):
        return LeftOut(f"refused_{found.reason}")
    responses = tuple(
        response
        if response.options is None
        else replace(response, options=tuple(found.rewrite(option) for option in response.options))
        for response in Source(transcript).whole().responses
    )
    return Rendering((RenderedText(found.text, responses),), details={"mapping": dict(found.mapping)})
