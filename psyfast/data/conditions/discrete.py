"""`discrete`: only responses of exactly one character A–Z stay marked (PROTOCOL 1).

You press <<J>>. You are <<25>> years old.        You press <<J>>. You are 25 years old.
"""

from __future__ import annotations

import re

from psyfast.data.conditions.condition import Setting
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, Rendering, Source

_ONE_LETTER = re.compile(r"[A-Z]")


def render_discrete(transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """The source without the markers around longer responses, whose text stays."""
    source = Source(transcript)
    text = transcript.text
    unmarked = {
        response_idx
        for response_idx, response in enumerate(source.responses)
        if not response.unbalanced and not _ONE_LETTER.fullmatch(text[response.char_start : response.char_stop])
    }
    if len(unmarked) == sum(not response.unbalanced for response in source.responses):
        return LeftOut("no_single_letter")
    return Rendering((source.join([(0, len(text))], unmarked=unmarked),))
