"""Raw rows: one JSON object each, with the place that it came from, before anything is read into it.

Whatever a row was stored in (a line, a parquet row, a Python dict), it is JSON values from here on, so that every later
rule is written once and the same row gives the same transcript from every kind of source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from psyfast.data.records import Transcript
from psyfast.errors import DataError


@dataclass
class FileRecord:
    """What a manifest says of one source. num_rows_read: rows looked at, bad ones too.

    sha256: of the bytes on disk; for a data set and for rows in memory, of the canonical JSON of the rows that were
    read, a line each (num_bytes counts those).
    """

    path: str
    sha256: str = ""
    num_rows_read: int = 0
    num_bytes: int = 0


class RowError(DataError):
    """A row that cannot be read. `reason` is the message without the place; the message has both."""

    def __init__(self, file: str, line: int, field: str, reason: str, unit: str = "line") -> None:
        field, reason = _printable(field), _printable(reason)
        where = f"{file}, {unit} {line}" + (f", field '{field}'" if field else "")
        super().__init__(f"{where}: {reason}")
        self.file = file
        self.line = line
        self.field = field
        self.reason = reason


def _printable(text: str) -> str:
    """A message may quote half a surrogate pair, which no terminal takes."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


class FieldError(ValueError):
    """A field of the wrong shape; raised where the row's place is not known and turned into a RowError where it is."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"field '{field}': {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True)
class RawRow:
    """A row and its place. line: 1-based, in `file` (in an archive: in the member, and `file` names both).

    unit: what `line` counts. row_idx: 0-based, blank lines aside, in `source_file`. default_study: the study of a row
    that names none.
    """

    value: Mapping[str, Any]
    file: str
    line: int
    unit: str
    source_file: str
    row_idx: int
    default_study: str

    def error(self, field: str, reason: str) -> RowError:
        """The error of this row."""
        return RowError(self.file, self.line, field, reason, self.unit)


@dataclass(frozen=True)
class ReadyRow:
    """A Transcript that was handed over as such, in the place of a row."""

    transcript: Transcript
    file: str
    line: int
    unit: str

    def error(self, field: str, reason: str) -> RowError:
        """The error of this row."""
        return RowError(self.file, self.line, field, reason, self.unit)


Row = RawRow | ReadyRow | RowError
"""What a source yields: errors of single rows are handed on, the reader decides whether they end the reading."""


class RowSource(Protocol):
    """Something that rows come from. `rows` starts afresh at every call and fills `record` while it reads.

    local: reading it twice costs little, so names can be looked up before the first transcript is handed out.
    """

    name: str
    local: bool

    def rows(self, record: FileRecord) -> Iterator[Row]:
        """The rows in order. Raises DataError where the source as a whole cannot be read."""
        ...


def parse_row(text: str) -> dict[str, Any]:
    """One line of JSON as an object; NaN and Infinity are let through.

    Raises FieldError (with an empty field, or the doubled one) that says what is wrong.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object_without_doubles)
    except json.JSONDecodeError as error:
        mend = "; each line must hold one whole JSON object" if error.msg in ("Extra data", "Expecting value") else ""
        raise FieldError("", f"not valid JSON at column {error.pos + 1}: {error.msg}{mend}") from None
    except RecursionError:
        raise FieldError("", "JSON nested too deeply to be read; expected one flat object a line") from None
    except ValueError as error:  # FieldError of the hook, or an integer of more digits than Python converts
        if isinstance(error, FieldError):
            raise
        raise FieldError("", f"not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise FieldError("", f'got {describe(value)}, expected a JSON object such as {{"text": …}}')
    return value


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        doubled = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise FieldError(doubled, "stands twice in one object; keep one of the two")
    return value


def to_json(value: Any) -> str:
    """Canonical JSON of a Python value (keys sorted, ASCII, NaN as a token): what is hashed, and what is read back.

    numpy values become numbers and lists, dates their ISO text, bytes their UTF-8 text. Raises FieldError where a value
    has no JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise FieldError("", f"not expressible as JSON: {error}") from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if type(value).__name__ in ("NaTType", "NAType"):  # pandas' nulls; pandas itself need not be there
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order; use a list")
    return str(value)


def is_missing(value: Any) -> bool:
    """Null and NaN (what pandas writes for null) are no value."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def json_spelling(value: Any) -> str:
    """A string as it is, anything else as JSON spells it: 35.0 is "35.0", 7 is "7", true is "true"."""
    return value if isinstance(value, str) else json.dumps(value)


def describe(value: Any) -> str:
    """What was got, for a message: the JSON type and the start of the value."""
    kinds = {
        type(None): "null",
        bool: "boolean",
        int: "number",
        float: "number",
        str: "string",
        list: "list",
        dict: "object",
    }
    kind = kinds.get(type(value), type(value).__name__)
    if value is None:
        return kind
    shown = json.dumps(value, default=str, ensure_ascii=False)
    return f"{kind} {shown if len(shown) <= 40 else shown[:37] + '…'}"


def has_lone_surrogate(text: str) -> bool:
    """Whether a string holds half a surrogate pair: it has no UTF-8, so no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
