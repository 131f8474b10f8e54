"""A line of a .jsonl file: one JSON object, or refused with its column."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_values import JSON_VALUES

from psyfast.data.rows import FieldError, json_spelling, parse_row, to_json


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_line_is_an_object_or_refused(line: str) -> None:
    with contextlib.suppress(FieldError):
        assert isinstance(parse_row(line), dict)


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES))
def test_canonical_json_reads_back(value: dict[str, Any]) -> None:
    assert to_json(parse_row(to_json(value))) == to_json(value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a",}', "not valid JSON at column 14"),
        ("{} {}", "column 4: Extra data; each line must hold one whole JSON object"),
        ("[1]", "got list [1], expected a JSON object"),
        ("null", "got null, expected a JSON object"),
        ("9" * 5000, "not readable as JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_lines_that_are_no_object_are_refused(line: str, said: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_row(line)
    assert said in caught.value.reason


def test_a_doubled_field_is_refused_by_name() -> None:
    with pytest.raises(FieldError, match="field 'RTs': stands twice"):
        parse_row('{"text": "a", "RTs": [1], "RTs": [2]}')


def test_json_spelling() -> None:
    assert [json_spelling(value) for value in (1e5, math.inf, "x", None)] == ["100000.0", "Infinity", "x", "null"]
