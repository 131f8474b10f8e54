"""A row's fields: identifiers, reaction times, options, persona, extra."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_values import JSON_VALUES

from psyfast.data.countries import ALPHA_3_NAMES, NO_COUNTRY, OTHER_SPELLINGS, country_name
from psyfast.data.fields import WARNING_KINDS, check_transcript, read_options, read_rts, read_transcript
from psyfast.data.persona import ALIASES, INTEGER_FIELDS, cast_persona_value, read_persona
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.rows import FieldError, RawRow

TWO_RESPONSES = "You press <<J>>. You press <<K>>."


def raw(**fields: Any) -> RawRow:
    return RawRow(fields, "prompts.jsonl", 7, "line", "prompts.jsonl", 5, "folder_name")


def read(**fields: Any) -> tuple[Transcript, Counter[Any]]:
    return read_transcript(
        raw(**{"text": TWO_RESPONSES, "study": "s", "experiment": "e", "participant": "p", **fields})
    )


def refused(**fields: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        read(**fields)
    return caught.value


# --- identifiers and text


@pytest.mark.parametrize(
    ("got", "spelled"),
    [
        (35.0, "35.0"),
        (7, "7"),
        (True, "true"),
        (False, "false"),
        ("35.0", "35.0"),
        (-1.5, "-1.5"),
        (10**30, str(10**30)),
    ],
)
def test_identifiers_keep_their_json_spelling(got: Any, spelled: str) -> None:
    transcript, warnings = read(study=got, experiment=got, participant=got)
    assert transcript.key == (spelled, spelled, spelled)
    assert not warnings


@pytest.mark.parametrize("nothing", [None, math.nan, ""])
def test_missing_identifiers_are_filled_and_counted(nothing: Any) -> None:
    transcript, warnings = read(study=nothing, experiment=nothing, participant=nothing)
    assert transcript.key == ("folder_name", "folder_name", "5")
    assert warnings == {"missing_study": 1, "missing_experiment": 1, "missing_participant": 1}


def test_a_missing_experiment_is_the_study() -> None:
    assert read(experiment=None)[0].key == ("s", "s", "p")


@pytest.mark.parametrize("field", ["study", "experiment", "participant"])
@pytest.mark.parametrize("got", [[1], {"a": 1}])
def test_an_identifier_that_is_no_scalar_is_refused(field: str, got: Any) -> None:
    error = refused(**{field: got})
    assert error.field == field
    assert json.dumps(got) in error.reason
    assert "expected a string or a number" in error.reason


def test_text_must_be_there_and_be_a_string() -> None:
    with pytest.raises(
        FieldError, match="is missing, expected the session as a string; the row has the fields: prompt"
    ):
        read_transcript(raw(prompt="x"))
    assert "is null" in refused(text=None).reason
    assert 'got list ["x"], expected the session as one string' in refused(text=["x"]).reason


@pytest.mark.parametrize("field", ["text", "study", "participant"])
def test_a_lone_surrogate_is_refused_with_its_place(field: str) -> None:
    error = refused(**{field: "ab\ud83d <<c>>"})
    assert error.field == field
    assert "'\\ud83d' at character 2" in error.reason


def test_text_facts() -> None:
    text = "Ü <<a>> 🙂 >> <<b"
    transcript, warnings = read(text=text)
    assert transcript.num_responses == 2
    assert transcript.text_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (transcript.source_file, transcript.source_row) == ("prompts.jsonl", 5)
    assert warnings == {"stray_closer": 1, "unbalanced_marker": 1}


def test_a_text_without_responses_is_kept_and_counted() -> None:
    transcript, warnings = read(text="Nothing here.", options=["a", "b"])
    assert transcript.num_responses == 0
    assert transcript.options == ()
    assert warnings == {"no_responses": 1}


# --- reaction times


@pytest.mark.parametrize(
    ("value", "expected", "counts"),
    [
        ([1, 2.5], (1.0, 2.5), {}),
        (["596", " 504.5 "], (596.0, 504.5), {}),
        ([math.nan, None], (None, None), {}),
        (["NaN", ""], (None, None), {}),
        ([-1, 5], (None, 5.0), {"rt_negative": 1}),
        ([math.inf, "soon"], (None, None), {"rt_unreadable": 2}),
        ([True, [3]], (None, None), {"rt_unreadable": 2}),
        (["1_000", 10**400], (None, None), {"rt_unreadable": 2}),
        ("[1, NaN]", (1.0, None), {}),
        (None, None, {}),
        ([], None, {}),
        ("", None, {}),
        (math.nan, None, {}),
        ([1, 2, 3], None, {"rt_count_mismatch": 1}),
        (5, None, {"rt_count_mismatch": 1}),
    ],
)
def test_rts(value: Any, expected: Any, counts: dict[str, int]) -> None:
    warnings: Counter[Any] = Counter()
    assert read_rts(value, 2, warnings) == expected
    assert warnings == counts


def test_a_single_number_is_the_rt_of_a_single_response() -> None:
    assert read_rts(812, 1, Counter()) == (812.0,)
    assert read_rts("812", 1, Counter()) == (812.0,)


@pytest.mark.parametrize("value", [{"a": 1}, True, "fast", "[1, 2", '{"a": 1}'])
def test_rts_that_are_no_list_are_refused(value: Any) -> None:
    with pytest.raises(FieldError, match="expected a list of numbers") as caught:
        read_rts(value, 2, Counter())
    assert caught.value.field == "RTs"


# --- options


@pytest.mark.parametrize(
    ("value", "expected", "counts"),
    [
        (["J", "K"], (("J", "K"), ("J", "K")), {}),
        ([["J", "K"], None], (("J", "K"), None), {}),
        ([["J", "K"], []], (("J", "K"), None), {}),
        ([None, None], (None, None), {}),
        ([1, 2.0, True, " x "], (("1", "2.0", "true", "x"),) * 2, {}),
        (["K", "J", "K", " J"], (("K", "J"),) * 2, {}),
        ([["J", "J"], ["J", "K"]], (None, ("J", "K")), {"options_single": 1}),
        ([["J", "K"]], None, {"options_count_mismatch": 1}),
        (None, None, {}),
        ([], None, {}),
    ],
)
def test_options(value: Any, expected: Any, counts: dict[str, int]) -> None:
    warnings: Counter[Any] = Counter()
    assert read_options(value, 2, warnings) == expected
    assert warnings == counts


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("J,K", 'got string "J,K", expected a list of strings, or one such list a response'),
        ({"a": 1}, "got object"),
        (["J", ["K"]], 'got string "J" at position 0 beside lists or nulls'),
        ([["J", None], None], "got null in the set of response 0, expected strings or numbers"),
        (["J", math.nan], "got number NaN"),
        (["J", {"a": 1}], "got object"),
        (["J", " "], "got an empty option"),
        (["J", "<<K>>"], "expected the answer without << and >>"),
        (["J", "\ud800"], "lone surrogate"),
    ],
)
def test_options_of_the_wrong_shape_are_refused(value: Any, said: str) -> None:
    with pytest.raises(FieldError) as caught:
        read_options(value, 2, Counter())
    assert caught.value.field == "options"
    assert said in caught.value.reason


# --- persona


def test_the_table_names_published_fields_only() -> None:
    assert len(PERSONA_FIELDS) == 25
    assert set(ALIASES) | set(INTEGER_FIELDS) <= set(PERSONA_FIELDS)


@pytest.mark.parametrize("field", PERSONA_FIELDS)
def test_every_name_of_a_field_leads_to_it(field: str) -> None:
    for name in (field, *ALIASES.get(field, ())):
        value = "depression" if field == "clinical diagnosis" else 12
        expected = {"age": "12.0", "clinical diagnosis": "depression"}.get(field, "12")
        assert read_persona({name: value}).known == {field: expected}


@pytest.mark.parametrize(
    ("field", "got", "expected"),
    [
        ("age", 25, "25.0"),
        ("age", "25", "25.0"),
        ("age", 14.23888889, "14.23888889"),
        ("age", 0, "0.0"),
        ("age", 100, "100.0"),
        ("gender", "Female", "female"),
        ("gender", "F", "female"),
        ("gender", "Woman", "female"),
        ("gender", "Male", "male"),
        ("gender", "M", "male"),
        ("gender", "Man", "male"),
        ("gender", "NB", "other"),
        ("gender", "Other", "other"),
        ("gender", "Prefer not to say", None),
        ("gender", "Rather not say", None),
        ("gender", "no-specify", None),
        ("gender", "agender", "agender"),
        ("clinical diagnosis", "Healthy", None),
        ("clinical diagnosis", "no-lesion-control", None),
        ("clinical diagnosis", "Depression", "depression"),
        ("clinical diagnosis", "Bipolar", "bipolar"),
        ("clinical diagnosis", "non-PFC-lesion", "brain-lesion"),
        ("clinical diagnosis", "OCD", "OCD"),
        ("nationality", "DEU", "Germany"),
        ("nationality", "USA", "United States"),
        ("nationality", "Basel", "Switzerland"),
        ("nationality", "Berlin", "Germany"),
        ("nationality", "Scotland", "United Kingdom"),
        ("nationality", "Northern Ireland", "United Kingdom"),
        ("nationality", "United_Kingdom", "United Kingdom"),
        ("nationality", 'Other "Kenya" (please specify)', "Kenya"),
        ("nationality", "Europe", None),
        ("nationality", "DATA_EXPIRED", None),
        ("nationality", "Utopia", "Utopia"),
        ("education", "some college", "College"),
        ("education", "High School Graduate", "High School"),
        ("education", "university degree", "Bachelor's Degree"),
        ("education", "none", "No Formal Education"),
        ("education", "rather not say", None),
        ("education", "apprenticeship", "apprenticeship"),
        ("STAI-T", 45.0, "45"),
        ("STAI-T", "45.0", "45"),
        ("AUDIT", 3, "3"),
        ("BIS-11", 61.9, "61"),
        ("STAI-S", 45.0, "45.0"),
        ("IUS", 1.25, "1.25"),
        ("GAD-7", "7", "7"),
    ],
)
def test_casts(field: str, got: Any, expected: str | None) -> None:
    assert cast_persona_value(field, got) == expected


@pytest.mark.parametrize("unknown", [None, math.nan, "", "N/A", "n/a", "NaN", "nan", " "])
@pytest.mark.parametrize("field", ["age", "education", "IUS", "PHQ-9"])
def test_unknown_is_absent_and_leaves_nothing(field: str, unknown: Any) -> None:
    persona = read_persona({field: unknown})
    assert not persona.known
    assert not persona.left
    assert persona.num_unreadable == 0


@pytest.mark.parametrize(
    ("field", "value"), [("age", 250), ("age", -1), ("age", "old"), ("age", True), ("age", [25]), ("PHQ", "high")]
)
def test_what_a_rule_cannot_read_is_counted_and_goes_to_extra(field: str, value: Any) -> None:
    transcript, warnings = read(**{field: value})
    assert transcript.persona == {}
    assert json.loads(transcript.extra) == {field: value}
    assert warnings == {"persona_unreadable": 1}


def test_what_was_said_but_is_no_persona_goes_to_extra_uncounted() -> None:
    transcript, warnings = read(diagnosis="Healthy")
    assert json.loads(transcript.extra) == {"diagnosis": "Healthy"}
    assert not warnings


def test_the_published_name_goes_before_an_alias() -> None:
    transcript, warnings = read(gender="male", sex="F")
    assert transcript.persona == {"gender": "male"}
    assert json.loads(transcript.extra) == {"sex": "F"}
    assert warnings == {"persona_conflict": 1}
    assert read(gender="N/A", sex="F")[0].persona == {"gender": "female"}
    assert read(gender="female", sex="F")[1] == {}


@given(st.sampled_from(PERSONA_FIELDS), st.one_of(st.text(), st.integers(-5, 200), st.floats(), st.booleans()))
def test_casts_leave_a_cast_value_alone(field: str, value: Any) -> None:
    known = read_persona({field: value}).known
    assert read_persona(known).known == known


def test_country_table() -> None:
    assert len(ALPHA_3_NAMES) == 249
    assert all(len(code) == 3 and code.isupper() and name == name.strip() for code, name in ALPHA_3_NAMES.items())
    assert len(set(ALPHA_3_NAMES.values())) == 249
    for name in (*ALPHA_3_NAMES.values(), *OTHER_SPELLINGS.values()):
        assert country_name(name) == name
    assert all(country_name(label) is None for label in NO_COUNTRY)


# --- extra


def test_unknown_fields_are_kept_as_valid_json() -> None:
    extra = {"b": [1, {"x": "ü"}], "a": 1.5, "trial": [0, 1], "is_psych101": False}
    transcript, warnings = read(**extra, gone=None)
    assert json.loads(transcript.extra) == extra
    assert transcript.extra.index('"a"') < transcript.extra.index('"b"')
    assert "ü" in transcript.extra
    assert not warnings


def test_nan_in_extra_becomes_null_and_is_counted() -> None:
    transcript, warnings = read(scores=[1, math.nan, {"x": math.inf}], lone=math.nan)
    assert json.loads(transcript.extra) == {"scores": [1, None, {"x": None}]}
    assert warnings == {"extra_nonfinite": 1}


def test_extra_with_half_a_pair_can_be_encoded() -> None:
    transcript, _ = read(note="\ud83d")
    assert json.loads(transcript.extra.encode()) == {"note": "\ud83d"}


# --- whole rows


FIELD_NAMES = st.sampled_from(
    ["text", "study", "experiment", "participant", "RTs", "options", "age", "sex", "stai", "x"]
)


@given(st.dictionaries(FIELD_NAMES, JSON_VALUES))
def test_any_json_object_is_read_or_refused_by_field(fields: dict[str, Any]) -> None:
    try:
        transcript, warnings = read_transcript(raw(**{"text": "<<a>> <<b>>", **fields}))
    except FieldError as error:
        assert error.field in fields
        return
    assert set(warnings) <= set(WARNING_KINDS)
    for items in (transcript.rts_ms, transcript.options):
        assert items is None or len(items) == transcript.num_responses
    json.loads(transcript.extra.encode(), parse_constant=pytest.fail)
    check_transcript(transcript)
