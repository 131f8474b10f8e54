"""Where choice sets come from, on their way to the encodings under both protocols."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from encoding_cases import flags
from tokenizers_real import tiny_tokenizer

from psyfast.data.encode import Protocol, encode
from psyfast.data.records import Transcript
from psyfast.data.transcripts import ReadOptions, transcripts_from_rows
from psyfast.errors import DataError, UsageError
from psyfast.rows import transcript_digest

TEXT = "Press J.\n" + "".join(f"You press <<{answer}>> now.\n" for answer in "JF" * 10) + "You press <<K>> now.\n"


def read(source: Any, /, **fields: Any) -> Transcript:
    (transcript,) = transcripts_from_rows([{"text": TEXT, **fields}], options=ReadOptions(options=source))
    return transcript


@pytest.mark.parametrize("protocol", list(Protocol))
def test_sets_found_reach_the_encoding_with_their_flags(protocol: Protocol) -> None:
    encoded = encode(read("auto"), tiny_tokenizer(" <<"), protocol)
    assert set(encoded.option_sets) == {("F", "J")}
    assert flags(encoded) == [["options_uncertain"]] * 20 + [["not_in_options", "options_uncertain"]]
    assert len(encoded.options) == 42


def test_by_default_only_the_datas_own_sets_count_and_they_come_before_auto() -> None:
    assert read("data").options is None
    own = read("auto", options=["J", "F", "K"])
    assert set(own.options or ()) == {("J", "F", "K")}
    assert own.uncertain_options == ()


def test_a_set_of_one_is_never_used() -> None:
    assert set(read("auto", options=["J"]).options or ()) == {None}
    assert set(read(lambda transcript: ["J"]).options or ()) == {None}


def test_a_function_decides_and_sees_the_datas_sets() -> None:
    assert set(read(lambda transcript: ("K", " J")).options or ()) == {("K", "J")}
    assert read(lambda transcript: None, options=["J", "F"]).options is None
    seen = read(lambda transcript: transcript.options, options=["J", "F"]).options
    assert set(seen or ()) == {("J", "F")}
    by_response = read(lambda transcript: [None, *[["J", "F"]] * 20]).options
    assert by_response is not None and by_response[:2] == (None, ("J", "F"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("JF", 'the function for options returned string "JF"'),
        (3, "the function for options returned number 3"),
        (b"JF", "expected a list of options or of sets"),
        ([["J", "F"]], "returned 1 sets, expected one for each of 21 responses"),
        ([["J", ""]] * 21, "got an empty option"),
        ([["J", "<<F>>"]] * 21, "expected the answer without << and >>"),
        ([{"J": 1}] * 21, "expected strings or numbers"),
    ],
)
def test_what_a_function_must_not_return(value: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(lambda transcript: value)
    assert "row 1, field 'options'" in str(caught.value)


def test_another_source_is_refused() -> None:
    with pytest.raises(UsageError, match="expected 'data', 'auto' or a function"):
        ReadOptions(options="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trials", 5),
        ("trials", tuple(map(str, range(21)))),
        ("trials", {idx: idx for idx in range(21)}),
        ("options", 5),
        ("uncertain_options", None),
        ("uncertain_options", ("x",)),
        ("uncertain_options", (1.5,)),
        ("uncertain_options", (True,)),
        ("uncertain_options", (21,)),
    ],
)
def test_a_transcript_made_elsewhere_is_held_to_its_fields(field: str, value: Any) -> None:
    made = replace(read("auto"), **{field: value})
    with pytest.raises(DataError, match=f"field '{field}': got .*expected"):
        list(transcripts_from_rows([made]))
    assert next(iter(transcripts_from_rows([read("auto")]))).uncertain_options == tuple(range(21))


def test_what_results_depend_on_is_in_the_digest() -> None:
    plain, auto, numbered = read("data"), read("auto"), read("data", trial=list(range(21)))
    assert len({transcript_digest(one) for one in (plain, auto, numbered)}) == 3


# --- the field `trial`


@pytest.mark.parametrize("numbers", [list(range(21)), [0.5] * 21])
def test_the_field_trial_is_read_and_kept(numbers: list[float]) -> None:
    transcript = read("data", trial=numbers)
    assert transcript.trials == tuple(numbers)
    assert json.loads(transcript.extra)["trial"] == numbers


def test_another_number_of_trials_is_counted_and_left_out() -> None:
    reader = transcripts_from_rows([{"text": TEXT, "trial": [1, 2]}])
    assert next(iter(reader)).trials is None
    assert reader.report.warnings["trial_count_mismatch"] == 1


@pytest.mark.parametrize("value", ["practice", {"a": 1}, True, [None] * 21, ["1"] * 21, [[1]] * 21, [10**400] * 21])
def test_trials_that_are_no_numbers_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"field 'trial': got .*expected"):
        read("data", trial=value)
