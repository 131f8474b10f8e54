"""`persona` and `shuffled-persona`: an interview about the participant before the session (PROTOCOL 6).

Interviewer: What is your age?
Interviewee: 25.0
                                    a blank line after each answer; then the transcript
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psyfast.data.conditions.condition import Setting
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.rendering import LeftOut, Rendering, Source

_QUESTIONS = {
    "age": "What is your age?",
    "gender": "What is your gender?",
    "nationality": "What is your nationality?",
    "education": "What is your highest level of education?",
    "clinical diagnosis": "Do you have any clinical diagnoses?",
}


def question(field: str) -> str:
    """What the interviewer asks for a field of PERSONA_FIELDS."""
    return _QUESTIONS.get(field, f"What is your {field} score?")


def interview(persona: Mapping[str, str], fields: Sequence[str] = PERSONA_FIELDS) -> str:
    """Questions and answers of the fields that are known, in the order of PERSONA_FIELDS; "" where none is."""
    return "".join(
        f"Interviewer: {question(field)}\nInterviewee: {persona[field]}\n\n"
        for field in PERSONA_FIELDS
        if field in fields and field in persona
    )


def render_persona(fields: tuple[str, ...], transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """The participant's own interview before the source."""
    return _after(interview(transcript.persona, fields), transcript)


def render_shuffled_persona(fields: tuple[str, ...], transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """The interview of another participant of the study before the source, for those that `persona` has."""
    if not interview(transcript.persona, fields):
        return LeftOut("no_persona")
    given = setting.pools[fields].given_to(transcript)
    return LeftOut("no_other_persona") if given is None else _after(interview(given, fields), transcript)


def _after(before: str, transcript: Transcript) -> Rendering | LeftOut:
    if not before:
        return LeftOut("no_persona")
    return Rendering((Source(transcript).join([before, (0, len(transcript.text))]),))
