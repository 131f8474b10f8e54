"""A row's fields -> a Transcript: identifiers, reaction times, options, persona, and everything else as `extra`."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

from psyfast.data.persona import PERSONA_NAMES, Persona, read_persona
from psyfast.data.records import Transcript
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, MarkedText, find_responses
from psyfast.data.rows import FieldError, RawRow, describe, has_lone_surrogate, is_missing, json_spelling

WarningKind = Literal[
    "missing_study",
    "missing_experiment",
    "missing_participant",
    "no_responses",
    "unbalanced_marker",
    "stray_closer",
    "rt_count_mismatch",
    "rt_unreadable",
    "rt_negative",
    "options_count_mismatch",
    "options_single",
    "trial_count_mismatch",
    "persona_unreadable",
    "persona_conflict",
    "extra_nonfinite",
]
"""What is mended rather than refused. Counted by transcript, but by occurrence: unbalanced_marker, stray_closer,
rt_unreadable, rt_negative (a reaction time each), options_single (a set each), persona_* (a field each).
"""

WARNING_KINDS: tuple[WarningKind, ...] = get_args(WarningKind)

Warnings = Counter[WarningKind]
OptionSets = tuple[tuple[str, ...] | None, ...]

READ_FIELDS = frozenset({"text", "study", "experiment", "participant", "RTs", "options"}) | PERSONA_NAMES

_RT_UNKNOWN_WORDS = frozenset({"", "nan", "n/a", "na", "null", "none"})


def study_of(row: RawRow) -> str:
    """The study that a row belongs to. Raises FieldError where the field is no scalar."""
    return _identifier(row.value, "study") or row.default_study


def read_transcript(row: RawRow) -> tuple[Transcript, Warnings]:
    """Read one row; the counter says what had to be mended. Raises FieldError naming the field that cannot be read."""
    warnings: Warnings = Counter()
    study, experiment, participant = _read_key(row, warnings)
    text = _read_text(row.value)
    marked = find_responses(text)
    num_responses = len(marked.responses)
    warnings.update(_text_warnings(marked))
    persona = _read_persona(row.value, warnings)
    transcript = Transcript(
        study=study,
        experiment=experiment,
        participant=participant,
        text=text,
        rts_ms=read_rts(row.value.get("RTs"), num_responses, warnings),
        options=read_options(row.value.get("options"), num_responses, warnings),
        persona=persona.known,
        extra=_extra_json(row.value, persona.left, warnings),
        source_file=row.source_file,
        source_row=row.row_idx,
        num_responses=num_responses,
        text_sha256=hashlib.sha256(text.encode()).hexdigest(),
        trials=read_trials(row.value.get("trial"), num_responses, warnings),
    )
    return transcript, +warnings


def check_transcript(transcript: Transcript) -> Warnings:
    """Hold a Transcript that was made elsewhere to what this module makes; returns what its text is warned of.

    Raises FieldError naming the field (of Transcript) that does not fit the text.
    """
    for field in ("study", "experiment", "participant", "text", "extra"):
        value = getattr(transcript, field)
        if not isinstance(value, str):
            raise FieldError(field, f"got {describe(value)}, expected a string")
        _encodable(field, value)
    marked = find_responses(transcript.text)
    num_responses = len(marked.responses)
    if transcript.num_responses != num_responses:
        raise FieldError("num_responses", f"got {transcript.num_responses}, expected the text's {num_responses}")
    by_response = {"rts_ms": transcript.rts_ms, "options": transcript.options, "trials": transcript.trials}
    for field, items in by_response.items():
        if items is None:
            continue
        _require_tuple(field, items)
        if len(items) != num_responses:
            raise FieldError(field, f"got {len(items)} entries, expected one for each of {num_responses} responses")
    for position, number in enumerate(transcript.trials or ()):
        _trial_number("trials", number, position)
    _require_tuple("uncertain_options", transcript.uncertain_options)
    for response_idx in transcript.uncertain_options:
        if type(response_idx) is not int or not 0 <= response_idx < num_responses:
            raise FieldError(
                "uncertain_options", f"got {response_idx!r}, expected indices of the {num_responses} responses"
            )
    if transcript.text_sha256 != hashlib.sha256(transcript.text.encode()).hexdigest():
        raise FieldError("text_sha256", "is not that of the text; make it anew when the text is changed")
    return _text_warnings(marked)


def _require_tuple(field: str, items: Any) -> None:
    if not isinstance(items, (tuple, list)):
        raise FieldError(field, f"got {describe(items)}, expected a tuple")


def _text_warnings(marked: MarkedText) -> Warnings:
    counts: Warnings = Counter()
    counts["no_responses"] = int(not marked.responses)
    counts["unbalanced_marker"] = sum(response.unbalanced for response in marked.responses)
    counts["stray_closer"] = marked.num_stray_closers
    return +counts


def _read_key(row: RawRow, warnings: Warnings) -> tuple[str, str, str]:
    study = _identifier(row.value, "study")
    experiment = _identifier(row.value, "experiment")
    participant = _identifier(row.value, "participant")
    warnings["missing_study"] += study is None
    warnings["missing_experiment"] += experiment is None
    warnings["missing_participant"] += participant is None
    study = study or row.default_study
    return study, experiment or study, participant or str(row.row_idx)


def _identifier(value: Mapping[str, Any], field: str) -> str | None:
    """The identifier as a string; None for null, NaN and the empty string, which name nothing."""
    got = value.get(field)
    if is_missing(got) or got == "":
        return None
    if isinstance(got, (list, dict)):
        raise FieldError(field, f"got {describe(got)}, expected a string or a number; give it one value")
    return _encodable(field, json_spelling(got))


def _encodable(field: str, text: str) -> str:
    if has_lone_surrogate(text):
        at = next(idx for idx, char in enumerate(text) if "\ud800" <= char <= "\udfff")
        raise FieldError(
            field,
            f"got the lone surrogate {text[at]!r} at character {at}, expected text that UTF-8 can hold; "
            "replace the broken character (often half an emoji)",
        )
    return text


def _read_text(value: Mapping[str, Any]) -> str:
    if value.get("text") is None:
        state = "is null" if "text" in value else "is missing"
        names = ", ".join(sorted(value)[:8]) or "none"
        raise FieldError("text", f"{state}, expected the session as a string; the row has the fields: {names}")
    text = value["text"]
    if not isinstance(text, str):
        raise FieldError("text", f"got {describe(text)}, expected the session as one string")
    return _encodable("text", text)


# --- reaction times


def read_rts(value: Any, num_responses: int, warnings: Warnings) -> tuple[float | None, ...] | None:
    """Reaction times in ms, one a response; None as a whole where there are none or their number is another one.

    A list that was stored as JSON text is unpacked, a single number is a list of one, an empty list is none at all.
    """
    if isinstance(value, str):
        value = _unpack_rts(value)
    if is_missing(value) or value == []:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list):
        raise FieldError("RTs", f"got {describe(value)}, expected a list of numbers (ms), one a response")
    if len(value) != num_responses:
        warnings["rt_count_mismatch"] += 1
        return None
    return tuple(_rt_ms(item, warnings) for item in value)


def _unpack_rts(text: str) -> Any:
    if text.strip().lower() in _RT_UNKNOWN_WORDS:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text  # stays a string, which the caller refuses in its own words
    return value


def _rt_ms(item: Any, warnings: Warnings) -> float | None:
    if is_missing(item) or (isinstance(item, str) and item.strip().lower() in _RT_UNKNOWN_WORDS):
        return None
    try:
        rt_ms = math.nan if isinstance(item, bool) or (isinstance(item, str) and "_" in item) else float(item)
    except (TypeError, ValueError, OverflowError):
        rt_ms = math.nan
    if not math.isfinite(rt_ms):
        warnings["rt_unreadable"] += 1
        return None
    if rt_ms < 0:
        warnings["rt_negative"] += 1
        return None
    return rt_ms


# --- options


def read_options(value: Any, num_responses: int, warnings: Warnings) -> OptionSets | None:
    """One choice set a response, None where a response has none; None as a whole where the row has none.

    Options are trimmed like the responses that they are compared with, doubles are taken once, and a set of one is no
    choice.
    """
    if is_missing(value) or value == []:
        return None
    if not isinstance(value, list):
        raise FieldError("options", f"got {describe(value)}, expected a list of strings, or one such list a response")
    if not any(item is None or isinstance(item, list) for item in value):
        return (_option_set(value, "", warnings),) * num_responses
    for idx, item in enumerate(value):
        if item is not None and not isinstance(item, list):
            reason = f"got {describe(item)} at position {idx} beside lists or nulls"
            raise FieldError("options", f"{reason}, expected either strings only or lists and nulls only")
    if len(value) != num_responses:
        warnings["options_count_mismatch"] += 1
        return None
    return tuple(_option_set(item, f" in the set of response {idx}", warnings) for idx, item in enumerate(value))


def _option_set(items: list[Any] | None, where: str, warnings: Warnings) -> tuple[str, ...] | None:
    if not items:
        return None
    options = tuple(dict.fromkeys(_option(item, where) for item in items))
    if len(options) == 1:
        warnings["options_single"] += 1
        return None
    return options


def _option(item: Any, where: str) -> str:
    if is_missing(item) or isinstance(item, (list, dict)) or (isinstance(item, float) and math.isinf(item)):
        raise FieldError("options", f"got {describe(item)}{where}, expected strings or numbers")
    option = json_spelling(item).strip()
    if not option:
        raise FieldError("options", f"got an empty option{where}, which has nothing to score; take it out")
    if OPEN_MARKER in option or CLOSE_MARKER in option:
        reason = f"got the option {describe(option)}{where}"
        raise FieldError("options", f"{reason}, expected the answer without {OPEN_MARKER} and {CLOSE_MARKER}")
    return _encodable("options", option)


# --- trials


def read_trials(value: Any, num_responses: int, warnings: Warnings) -> tuple[float, ...] | None:
    """The number of each response's trial; None as a whole where there are none or their number is another one.

    A single number is a list of one. The field stays among the others (`extra`) as it came.
    """
    if is_missing(value) or value == []:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list):
        raise FieldError("trial", f"got {describe(value)}, expected a list of numbers, one a response")
    numbers = tuple(_trial_number("trial", item, position) for position, item in enumerate(value))
    if len(numbers) != num_responses:
        warnings["trial_count_mismatch"] += 1
        return None
    return numbers


def _trial_number(field: str, item: Any, position: int) -> float:
    # No trial's number is beyond 2⁵³, where whole numbers are told apart no more.
    if isinstance(item, bool) or not isinstance(item, (int, float)) or not -(2**53) <= item <= 2**53:
        raise FieldError(field, f"got {describe(item)} at position {position}, expected finite numbers, one a response")
    return item


# --- persona and everything else


def _read_persona(value: Mapping[str, Any], warnings: Warnings) -> Persona:
    persona = read_persona(value)
    warnings["persona_unreadable"] += persona.num_unreadable
    warnings["persona_conflict"] += persona.num_conflicts
    for field, known in persona.known.items():
        _encodable(field, known)
    return persona


def _extra_json(value: Mapping[str, Any], left: Mapping[str, Any], warnings: Warnings) -> str:
    """Every other field as JSON that any reader takes: keys sorted, NaN and Infinity as null (counted), nulls left out.

    A table's column is null wherever a row lacked the field; without the nulls a row is the same from JSON and parquet.
    """
    kept = {name: item for name, item in value.items() if name not in READ_FIELDS and item is not None}
    kept.update(left)
    try:
        extra = json.dumps(kept, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except ValueError:
        warnings["extra_nonfinite"] += 1
        finite = {name: _finite(item) for name, item in kept.items()}
        extra = json.dumps(
            {name: item for name, item in finite.items() if item is not None}, ensure_ascii=False, sort_keys=True
        )
    return json.dumps(json.loads(extra), sort_keys=True) if has_lone_surrogate(extra) else extra


def _finite(item: Any) -> Any:
    if isinstance(item, float):
        return item if math.isfinite(item) else None
    if isinstance(item, list):
        return [_finite(part) for part in item]
    if isinstance(item, dict):
        return {name: _finite(part) for name, part in item.items()}
    return item
