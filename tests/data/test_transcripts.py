"""The reader over every kind of source: what it reads, filters, counts and skips; each bad row by its place."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_sources import (
    ROWS,
    SKIP,
    as_folder_of_files,
    as_gzip,
    as_jsonl,
    as_jsonl_with_oddities,
    as_parquet,
    as_saved_dataset,
    as_saved_splits,
    as_zip,
    as_zip_of_two,
    keys,
    lines,
    message,
    placeless,
    read,
    row,
    write,
    write_zip,
)

from psyfast.data.rows import RowError
from psyfast.data.transcripts import ReadOptions, SkippedRow, TranscriptReader, transcripts_from_rows
from psyfast.errors import DataError, UsageError

# --- every kind of source


@pytest.mark.parametrize(
    "make",
    [
        as_jsonl,
        as_jsonl_with_oddities,
        as_gzip,
        as_zip,
        as_zip_of_two,
        as_parquet,
        as_folder_of_files,
        as_saved_dataset,
        as_saved_splits,
    ],
)
def test_every_kind_of_source_gives_the_same_transcripts(make: Any, tmp_path: Path) -> None:
    reader = TranscriptReader(make(tmp_path))
    transcripts = list(reader)
    assert placeless(transcripts) == placeless(transcripts_from_rows(ROWS))
    assert reader.report.warnings == {"rt_negative": 1}
    assert reader.report.rows_read == reader.report.num_transcripts == 3
    assert list(reader) == transcripts, "a second iteration starts afresh"
    assert reader.report.rows_read == 3


def test_what_is_read(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    first, second, third = read(path)
    assert first.text == ROWS[0]["text"]
    assert first.rts_ms == (512.0, None)
    assert first.options == (("J", "K"), ("J", "K"))
    assert first.persona == {"age": "25.0"}
    assert json.loads(first.extra) == {"notes": {"x": [1, 2]}}
    assert (second.rts_ms, second.options, second.persona, second.extra) == (None, None, {}, "{}")
    assert third.rts_ms == (None,)
    assert [t.source_row for t in (first, second, third)] == [0, 1, 2]
    assert {t.source_file for t in (first, second, third)} == {str(path)}


def test_files_are_recorded_with_their_hash(tmp_path: Path) -> None:
    path = as_gzip(tmp_path)
    reader = TranscriptReader([path], ReadOptions(limit=1))
    list(reader)
    (record,) = reader.report.files
    assert record.path == str(path)
    assert record.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.num_bytes == path.stat().st_size
    assert record.num_rows_read == 1


def test_rows_in_memory_are_recorded_with_the_hash_of_their_canonical_json() -> None:
    first, again = transcripts_from_rows(ROWS), transcripts_from_rows([dict(reversed(r.items())) for r in ROWS])
    list(first), list(again)
    assert first.report.files == again.report.files
    assert first.report.files[0].path == "<memory>"
    other = transcripts_from_rows(ROWS[:2])
    list(other)
    assert other.report.files[0].sha256 != first.report.files[0].sha256


def test_sources_are_read_in_the_order_given(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [row("1")])
    two = write(tmp_path / "two.jsonl", [row("2")])
    assert [t.participant for t in read(two, one)] == ["2", "1"]
    assert [t.participant for t in TranscriptReader(str(one))] == ["1"]


def test_a_folder_of_studies(tmp_path: Path) -> None:
    write(tmp_path / "b_study" / "prompts.jsonl", [{"text": "<<1>>", "participant": 1}])
    write_zip(tmp_path / "a_study" / "prompts.jsonl.zip", {"Users/me/prompts.jsonl": lines([{"text": "<<2>>"}])})
    write(tmp_path / "lab" / "c_study" / "prompts.jsonl.gz", gzip.compress(lines([{"text": "<<3>>"}])))
    write(tmp_path / "b_study" / "other.jsonl", b"not read")
    write(tmp_path / ".git" / "prompts.jsonl", b"not read")
    write(tmp_path / "b_study" / "generate_prompts.py", b"")
    reader = TranscriptReader(tmp_path)
    assert keys(reader) == [("a_study", "a_study", "0"), ("b_study", "b_study", "1"), ("c_study", "c_study", "0")]
    assert reader.report.passed_over == (str(tmp_path / "b_study" / "other.jsonl"),)
    assert reader.report.warnings == {"missing_study": 3, "missing_experiment": 3, "missing_participant": 2}


def test_a_study_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a_study" / "prompts.jsonl", [{"text": "<<1>>"}])
    monkeypatch.chdir(tmp_path / "a_study")
    for source in (tmp_path / "a_study", ".", "prompts.jsonl", tmp_path / "a_study" / "prompts.jsonl"):
        assert read(source)[0].study == "a_study"


def test_a_file_by_another_name_gives_its_stem_as_study(tmp_path: Path) -> None:
    assert read(write(tmp_path / "my.study.jsonl", [{"text": "<<1>>"}]))[0].study == "my.study"


def test_rows_of_an_archive_are_numbered_through(tmp_path: Path) -> None:
    member = lines([{"text": "<<1>>"}, {"text": "<<2>>"}])
    path = write_zip(tmp_path / "x.jsonl.zip", {"one.jsonl": member, "deep/prompts.jsonl": member})
    assert keys(read(path)) == [("x", "x", "0"), ("x", "x", "1"), ("deep", "deep", "2"), ("deep", "deep", "3")]


def test_links_that_form_a_loop_end(tmp_path: Path) -> None:
    write(tmp_path / "a_study" / "prompts.jsonl", [{"text": "<<1>>"}])
    (tmp_path / "a_study" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(read(tmp_path)) == 1


# --- studies, limit


def test_studies_are_filtered(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    reader = TranscriptReader([path], ReadOptions(studies=("t",)))
    assert keys(reader) == [("t", "t/1", "a")]
    assert (reader.report.num_filtered, reader.report.rows_read) == (2, 3)
    assert keys(read(path, studies=("t", "s"), limit=2)) == [("s", "s/1", "a"), ("s", "s/1", "b")]


def test_a_study_that_does_not_occur_is_named_before_anything_is_handed_out(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [row(study="zebra"), row(study="badre2020"), row(study="alpha")])
    reader = iter(TranscriptReader([path], ReadOptions(studies=("alpha", "bardre2020"))))
    with pytest.raises(DataError) as caught:
        next(reader)
    assert str(caught.value) == "study 'bardre2020' does not occur in the sources; found: badre2020, alpha, zebra"


def test_rows_of_other_studies_need_not_be_good(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [row(study="other", text=5), row(study="wanted")])
    assert len(read(path, studies=("wanted",))) == 1


def test_limit_counts_transcripts_in_all(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [row(1), row(2)])
    two = write(tmp_path / "two.jsonl", [row(3), b"".decode(), row(4)])
    assert [t.participant for t in read(one, two, limit=3)] == ["1", "2", "3"]


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -1}, {"on_bad_row": "ignore"}, {"studies": "abc"}])
def test_options_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        ReadOptions(**options)


# --- bad rows: file, line, field, what was got and expected

GOOD = lines([row("good")])
BAD_LINES = [
    (b'{"text": "a",}', "", "not valid JSON at column 14"),
    (b'["text"]', "", 'got list ["text"], expected a JSON object'),
    (b'{"study": "s"}', "text", "is missing, expected the session as a string"),
    (b'{"text": null}', "text", "is null"),
    (b'{"text": 5}', "text", "got number 5, expected the session as one string"),
    (b'{"text": "a", "text": "b"}', "text", "stands twice in one object"),
    (b'{"text": "a", "study": ["s"]}', "study", 'got list ["s"], expected a string or a number'),
    (b'{"text": "a", "experiment": {}}', "experiment", "got object {}"),
    (b'{"text": "a", "participant": [1]}', "participant", "got list [1]"),
    (b'{"text": "<<a>>", "RTs": {"a": 1}}', "RTs", 'got object {"a": 1}, expected a list of numbers'),
    (b'{"text": "<<a>>", "options": "a"}', "options", 'got string "a", expected a list of strings'),
    (b'{"text": "\\ud800"}', "text", "lone surrogate '\\ud800' at character 0"),
    (
        b'{"text": "caf\xe9"}',
        "",
        f"invalid UTF-8 at byte offset {len(GOOD) + 1 + 13} (byte 0xe9); save the file as UTF-8",
    ),
]


@pytest.mark.parametrize(("line", "field", "reason"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, field: str, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", GOOD + b"\n" + line + b"\n" + lines([row("after")]))
    with pytest.raises(RowError) as caught:
        read(path)
    where = f"{path}, line 3" + (f", field '{field}'" if field else "")
    assert str(caught.value).startswith(f"{where}: ")
    assert reason in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(("line", "field", "reason"), BAD_LINES)
def test_a_bad_line_can_be_skipped_and_is_listed(tmp_path: Path, line: bytes, field: str, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", GOOD + b"\n" + line + b"\n" + lines([row("after")]))
    reader = TranscriptReader([path], SKIP)
    transcripts = list(reader)
    assert [t.participant for t in transcripts] == ["good", "after"]
    assert [t.source_row for t in transcripts] == [0, 2]
    (skipped,) = reader.report.skipped
    assert (skipped.file, skipped.line, skipped.field) == (str(path), 3, field)
    assert reason in skipped.reason
    assert reader.report.rows_read == 3


def test_a_bad_line_in_an_archive_is_named_with_its_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.jsonl.zip", {"one.jsonl": GOOD, "two.jsonl": b"\n{]\n"})
    assert f"{path}::two.jsonl, line 2: not valid JSON at column 2" in message(path)


def test_a_byte_order_mark_counts_in_the_offset(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + GOOD + b"\xff\n")
    assert f"line 2: invalid UTF-8 at byte offset {3 + len(GOOD)} (byte 0xff)" in message(path)


def test_a_bad_parquet_row_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["<<a>>", None]}), tmp_path / "x.parquet")
    assert f"{tmp_path / 'x.parquet'}, row 2, field 'text': is null" in message(tmp_path / "x.parquet")


def test_a_parquet_string_that_is_no_utf8_costs_only_its_row(tmp_path: Path) -> None:
    bad = pa.array([b"<<a>>", b"caf\xe9", b"<<b>>"]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "x.parquet")
    reader = TranscriptReader(tmp_path / "x.parquet", SKIP)
    assert [t.text for t in reader] == ["<<a>>", "<<b>>"]
    (skipped,) = reader.report.skipped
    assert (skipped.line, skipped.field) == (2, "text")
    assert "cannot be read" in skipped.reason


def test_parquet_values_beyond_json(tmp_path: Path) -> None:
    import datetime
    import decimal

    pq.write_table(
        pa.table(
            {
                "text": ["<<a>>"],
                "participant": [35.0],
                "day": [datetime.date(2026, 1, 2)],
                "cost": [decimal.Decimal("1.50")],
                "raw": [b"x"],
            }
        ),
        tmp_path / "x.parquet",
    )
    (transcript,) = read(tmp_path / "x.parquet")
    assert transcript.participant == "35.0"
    assert json.loads(transcript.extra) == {"day": "2026-01-02", "cost": "1.50", "raw": "x"}


def test_a_participant_that_occurs_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", b"\n" + lines([row("p"), row("q")]))
    two = write(tmp_path / "two.jsonl", [row("r"), row("p", text="<<other>>")])
    said = message(one, two)
    assert said.startswith(f"{two}, line 2, field 'participant': study 's', experiment 'e', participant 'p'")
    assert f"was read before from {one}, line 2;" in said
    reader = TranscriptReader([one, two], SKIP)
    assert [t.participant for t in reader] == ["p", "q", "r"]
    assert reader.report.skipped[0].line == 2


def test_keys_do_not_run_into_each_other() -> None:
    assert len(list(transcripts_from_rows([row("b", experiment="a,"), row(",b", experiment="a")]))) == 2


# --- rows in memory


def test_transcripts_pass_through_the_same_checks() -> None:
    made = list(transcripts_from_rows(ROWS))
    assert list(transcripts_from_rows(made)) == made
    with pytest.raises(RowError, match=r"row 2, field 'participant'.*was read before from <memory>, row 1"):
        list(transcripts_from_rows([made[0], made[0]]))
    for change, field in (
        ({"text": "<<a>>"}, "num_responses"),
        ({"text": made[0].text + "."}, "text_sha256"),
        ({"rts_ms": (1.0,)}, "rts_ms"),
        ({"options": ()}, "options"),
        ({"study": 5}, "study"),
        ({"extra": "\ud800"}, "extra"),
    ):
        with pytest.raises(RowError, match=f"<memory>, row 1, field '{field}'"):
            list(transcripts_from_rows([dataclasses.replace(made[0], **change)]))


def test_numpy_and_pandas_values_are_understood() -> None:
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    given = {
        "text": "<<a>> <<b>>",
        "participant": np.int64(7),
        "RTs": np.array([1.5, np.nan]),
        "age": pd.NA,
        "day": pd.NaT,
    }
    (transcript,) = transcripts_from_rows([given], "frame")
    assert transcript.key == ("frame", "frame", "7")
    assert transcript.rts_ms == (1.5, None)
    assert (transcript.persona, transcript.extra) == ({}, "{}")


def test_rows_in_memory_that_are_no_rows() -> None:
    with pytest.raises(RowError, match='<memory>, row 1: got string "abc", expected a dict or a Transcript'):
        list(transcripts_from_rows(["abc"]))  # type: ignore[list-item]
    with pytest.raises(RowError, match="not expressible as JSON: a set has no order"):
        list(transcripts_from_rows([row(x={1, 2})]))
    with pytest.raises(DataError, match="<memory>: is empty"):
        list(transcripts_from_rows([]))


def test_an_iterator_can_be_read_once() -> None:
    reader = transcripts_from_rows(iter(ROWS), options=ReadOptions(studies=("t",)))
    assert len(list(reader)) == 1
    with pytest.raises(DataError, match="used up; hand over a list"):
        list(reader)


def test_the_report_is_there_while_reading() -> None:
    reader = transcripts_from_rows([row(1), {"bad": 1}, row(2)], options=SKIP)
    assert reader.report.rows_read == 0
    stream = iter(reader)
    next(stream)
    assert (reader.report.rows_read, reader.report.num_transcripts) == (1, 1)
    next(stream)
    assert reader.report.skipped == [
        SkippedRow("<memory>", 2, "text", "is missing, expected the session as a string; the row has the fields: bad")
    ]


# --- real transcripts


def test_real_transcripts(shared_dir: Path) -> None:
    reader = TranscriptReader(shared_dir / "data" / "psych201")
    transcripts = list(reader)
    assert len({transcript.study for transcript in transcripts}) == len(reader.report.files) == 29
    assert len(transcripts) == reader.report.rows_read == 76
    assert not reader.report.skipped
    # These files are contributions (no `study`); three sessions of frey2017dfe have eight RTs fewer than responses.
    assert reader.report.warnings == {"missing_study": 76, "rt_count_mismatch": 3}
    of_study = {transcript.study: transcript for transcript in transcripts}
    assert of_study["bavard2023functional"].participant.endswith(".0")
    assert of_study["frey2017dfe"].persona["nationality"] in ("Switzerland", "Germany")
    assert set(json.loads(of_study["xu2023augmenting"].extra)) == {"attention", "anxiety", "feedback"}
