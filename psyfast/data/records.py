"""A transcript as it was read, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PERSONA_FIELDS: tuple[str, ...] = (
    "age",
    "gender",
    "nationality",
    "education",
    "clinical diagnosis",
    "STICSA-T somatic",
    "STICSA-T cognitive",
    "STAI-S",
    "STAI-T",
    "IUS",
    "RRQ",
    "AUDIT",
    "DAST",
    "PSWQ",
    "GAD-7",
    "SDS",
    "OCI",
    "PHQ-9",
    "PHQ-8",
    "BAS Drive",
    "BAS Fun Seeking",
    "BAS Reward Responsiveness",
    "BDI-II",
    "BIS-11",
    "BIS-10",
)
"""The 25 metadata fields of PROTOCOL 6, in its order."""


@dataclass(frozen=True)
class Transcript:
    """One participant's session (PROTOCOL 1).

    Identifiers are strings, compared as they stand in the data (35.0 is "35.0").
    rts_ms: one reaction time a response of `find_responses(text)`, None where unknown; None as a whole where the data
    has none or their number differs from that of the responses. options: one choice set a response (None where it has
    none); None as a whole where the data has no `options`. persona: the fields of PERSONA_FIELDS that are known.
    extra: JSON object of every other field, as it came. source_row: 0-based number of the row in source_file, blank
    lines aside. trials: the number of each response's trial, as the data counts them; None where it has no `trial`.
    uncertain_options: responses (by index) whose choice set the text never names.
    """

    study: str
    experiment: str
    participant: str
    text: str
    rts_ms: tuple[float | None, ...] | None
    options: tuple[tuple[str, ...] | None, ...] | None
    persona: Mapping[str, str]
    extra: str
    source_file: str
    source_row: int
    num_responses: int
    text_sha256: str
    trials: tuple[float, ...] | None = None
    uncertain_options: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """(study, experiment, participant): what makes a transcript unique."""
        return self.study, self.experiment, self.participant
