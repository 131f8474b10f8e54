"""`plain`: the transcript as it is."""

from __future__ import annotations

from psyfast.data.records import Transcript
from psyfast.data.rendering import RenderedText, Source


def plain(transcript: Transcript) -> RenderedText:
    """The source text, every response marked."""
    return Source(transcript).join([(0, len(transcript.text))])
