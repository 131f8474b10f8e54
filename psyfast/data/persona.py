"""The 25 persona fields (PROTOCOL 6): contributors' names brought to the published ones, and their values cast.

The casts leave a published value as it is, so published rows and contributors' rows go the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from psyfast.data.countries import country_name
from psyfast.data.records import PERSONA_FIELDS
from psyfast.data.rows import is_missing, json_spelling

ALIASES: dict[str, tuple[str, ...]] = {
    "gender": ("sex",),
    "nationality": ("location",),
    "clinical diagnosis": ("diagnosis",),
    "STICSA-T somatic": ("STICSAsoma",),
    "STICSA-T cognitive": ("STICSAcog",),
    "STAI-S": ("STAI",),
    "STAI-T": ("stai", "stai_total"),
    "AUDIT": ("audit_total",),
    "PSWQ": ("pswq",),
    "GAD-7": ("gad7",),
    "SDS": ("sds_total",),
    "OCI": ("oci_total",),
    "PHQ-9": ("PHQ",),
    "PHQ-8": ("phq8",),
    "BAS Drive": ("bas_drive",),
    "BAS Fun Seeking": ("bas_fun_seeking",),
    "BAS Reward Responsiveness": ("bas_reward_response",),
    "BDI-II": ("BDI-II score",),
    "BIS-11": ("BIS", "bis"),
    "BIS-10": ("bis_total",),
}
"""Published name -> the names that contributors use for it."""

INTEGER_FIELDS = (
    "STAI-T",
    "AUDIT",
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

_UNKNOWN_WORDS = frozenset({"", "n/a", "nan"})
# What recruitment platforms write once a participant's data are gone, and what the unwilling choose.
_WITHHELD_WORDS = frozenset(
    {
        "data_expired",
        "data expired",
        "consent_revoked",
        "consent revoked",
        "no-specify",
        "no-spe",
        "prefer not to answer",
        "prefer not to say",
        "rather not say",
    }
)

_GENDERS = {
    "Female": "female",
    "F": "female",
    "Woman": "female",
    "Male": "male",
    "M": "male",
    "Man": "male",
    "NB": "other",
    "Other": "other",
}

_DIAGNOSES = {
    "Healthy": None,
    "no-lesion-control": None,
    "Depression": "depression",
    "Bipolar": "bipolar",
    "non-PFC-lesion": "brain-lesion",
}

_LEVELS: dict[str, tuple[str, ...]] = {
    "No Formal Education": ("none", "no formal ed."),
    "Less than High School": ("less than high school", "less than high school degree", "primary", "primary ed."),
    "High School": (
        "high school",
        "high school graduate",
        "high school graduate (high school diploma or equivalent including ged)",
        "secondary",
        "secondary ed.",
        "school (gcse or similar)",
    ),
    "Technical Education": ("technical ed.", "school (a-levels, vocational, or similar)"),
    "College": ("some college", "some-college", "some college but no degree"),
    "Associate Degree": ("associate degree", "associate degree in college (2-year)"),
    "Bachelor's Degree": (
        "bachelor",
        "bachelor degree",
        "bachelor's degree",
        "bachelor's degree in college (4-year)",
        "college-completed",
        "university degree",
    ),
    "Master's Degree or Higher": (
        "grad",
        "graduate",
        "master",
        "master's degree",
        "master degree or higher",
        "mba",
        "phd",
        "doctoral degree",
        "advanced degree (ma, phd, etc)",
    ),
    "Professional Degree": ("professional degree (jd, md)",),
}
_LEVEL_OF_SPELLING = {spelling: level for level, spellings in _LEVELS.items() for spelling in spellings}


class UnreadableValue(ValueError):  # noqa: N818 - it names the value, the caller decides whether that is an error
    """A value that its field's rule cannot read (an age of 250, a score of "high")."""


@dataclass(frozen=True)
class Persona:
    """known: the fields that are known. left: entries for `extra`, under their own names. The counts are of fields."""

    known: Mapping[str, str]
    left: Mapping[str, Any]
    num_unreadable: int
    num_conflicts: int


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise UnreadableValue
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UnreadableValue from None
    if not math.isfinite(number):
        raise UnreadableValue
    return number


def _age(value: Any) -> str:
    years = _number(value)
    if not 0 <= years <= 100:
        raise UnreadableValue
    return str(years)


def _integer(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else str(int(_number(value)))


def _gender(value: Any) -> str:
    word = json_spelling(value)
    return _GENDERS.get(word, word)


def _diagnosis(value: Any) -> str | None:
    word = json_spelling(value)
    return _DIAGNOSES.get(word, word)


def _education(value: Any) -> str:
    word = json_spelling(value)
    return _LEVEL_OF_SPELLING.get(word.lower(), word)


def _nationality(value: Any) -> str | None:
    return country_name(json_spelling(value))


_CASTS: dict[str, Callable[[Any], str | None]] = {
    "age": _age,
    "gender": _gender,
    "nationality": _nationality,
    "education": _education,
    "clinical diagnosis": _diagnosis,
    **dict.fromkeys(INTEGER_FIELDS, _integer),
}
"""Fields without a cast stay as they came."""


def _says_nothing(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and value.strip().lower() in _UNKNOWN_WORDS)


def cast_persona_value(field: str, value: Any) -> str | None:
    """A value as the published data would spell it; None where it is unknown.

    Raises UnreadableValue where the field's rule cannot read it.
    """
    if _says_nothing(value) or (isinstance(value, str) and value.strip().lower() in _WITHHELD_WORDS):
        return None
    if isinstance(value, (list, tuple, dict)):
        raise UnreadableValue
    return _CASTS.get(field, json_spelling)(value)


def read_persona(row: Mapping[str, Any]) -> Persona:
    """Take the persona out of a row.

    The published name goes before an alias, aliases go in the table's order; the first that is known wins. What was
    said but is not in `known` (out of its rule, withheld, "Healthy", a second and different value) is in `left`.
    """
    known: dict[str, str] = {}
    left: dict[str, Any] = {}
    num_unreadable = num_conflicts = 0
    for field in PERSONA_FIELDS:
        for name in (field, *ALIASES.get(field, ())):
            if name not in row or _says_nothing(row[name]):
                continue
            try:
                value = cast_persona_value(field, row[name])
            except UnreadableValue:
                num_unreadable += 1
                value = None
            if value is None:
                left[name] = row[name]
            elif known.setdefault(field, value) != value:
                num_conflicts += 1
                left[name] = row[name]
    return Persona(known, left, num_unreadable, num_conflicts)


PERSONA_NAMES: frozenset[str] = frozenset(PERSONA_FIELDS) | {name for names in ALIASES.values() for name in names}
"""Every field name of a row that `read_persona` takes."""
