"""`plain`: the transcript as it is."""

from __future__ import annotations

from psyfast.data.conditions.condition import Setting
from psyfast.data.records import Transcript
from psyfast.data.rendering import RenderedText, Rendering, Source


def plain(transcript: Transcript) -> RenderedText:
    """The source text, every response marked."""
    return Source(transcript).whole()


def render_plain(transcript: Transcript, setting: Setting) -> Rendering:
    """The source text."""
    return Rendering((plain(transcript),))
