import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyfast.errors import RunError
from psyfast.store.atomic import TEMPORARY_PREFIX, whole_file, write_json
from psyfast.store.reading import compare_runs, responses_dataset
from psyfast.store.run_folder import PartRecord, RunFolder, read_manifest, streamed_table
from psyfast.store.schema import RESPONSES, SCHEMA_VERSION, participants_schema, responses_schema


def row(i, nll=1.5, **changes):
    values = dict(
        study="s", experiment="e", participant="p", response_idx=i, response="A", char_start=i, char_stop=i + 1,
        token_start=i, token_stop=i + 1, num_tokens=1, nll_nats=nll, is_argmax=True, rank=0, entropy_nats=0.5,
        rt_ms=None, options=["A", "B"], option_nll_nats=[nll, 2.0], flags=[],
    )  # fmt: skip
    return {**values, **changes}


def record(part_idx=0, start=0, stop=1):
    return PartRecord(part_idx, start, stop, 10, 8, 2, 2, {"empty": 1}, {"s": 10}, {"engine": 0.5})


def test_a_part_comes_back_with_its_rows_and_its_record(tmp_path):
    run = RunFolder(tmp_path / "run")
    rows = [row(0), row(1, nll=None, flags=["empty"], options=None, option_nll_nats=None)]
    run.write_part("m", "plain", record(), rows, RESPONSES)
    assert run.finished_parts("m", "plain") == [record()]
    table = responses_dataset(run).to_table()
    assert table.select(RESPONSES.names).to_pylist() == rows
    assert table["model"].to_pylist() == ["m", "m"]
    assert table["condition"].to_pylist() == ["plain", "plain"]


def test_parts_come_in_the_order_of_their_numbers(tmp_path):
    run = RunFolder(tmp_path)
    for part_idx in (10, 2, 100_001):
        run.write_part("m", "plain", record(part_idx), [row(0)], RESPONSES)
    assert [r.part_idx for r in run.finished_parts("m", "plain")] == [2, 10, 100_001]


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="halfway"), whole_file(tmp_path / "a" / "x.json") as temporary:
        temporary.write_text("half")
        raise ValueError("halfway")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match=r"NaN|Out of range"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_streamed_table_holds_all_rows_in_order(tmp_path):
    schema = participants_schema(("age",))
    with streamed_table(tmp_path / "p.parquet", schema) as add:
        for i in range(1203):
            add({"study": "s", "source_row": i})
    assert pq.read_table(tmp_path / "p.parquet")["source_row"].to_pylist() == list(range(1203))


@pytest.mark.parametrize("leftover", ["manifest.json", "notes.txt"])
def test_a_folder_that_holds_something_is_refused(tmp_path, leftover):
    (tmp_path / leftover).write_text("{}")
    with pytest.raises(RunError, match=r"--resume" if leftover == "manifest.json" else "not empty"):
        RunFolder(tmp_path).require_empty()


def test_what_a_run_killed_at_its_start_leaves_does_not_stand_in_the_way(tmp_path):
    (tmp_path / (TEMPORARY_PREFIX + "participants.parquet.tmp")).write_text("half")
    RunFolder(tmp_path).require_empty()


def test_newer_formats_are_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.write_manifest({"status": "complete"})
    assert run.read_manifest()["schema_version"] == SCHEMA_VERSION
    for version in (SCHEMA_VERSION + 1, 0, -3):
        (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": version}))
        with pytest.raises(RunError, match="upgrade psyfast"):
            run.read_manifest()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{"])
def test_a_broken_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match="manifest"):
        read_manifest(tmp_path / "manifest.json")


def test_a_foreign_parquet_file_among_the_parts_is_named(tmp_path):
    run = RunFolder(tmp_path)
    run.part_folder("m", "plain").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), run.part_folder("m", "plain") / "part-00000.parquet")
    with pytest.raises(RunError, match="part-00000"):
        run.finished_parts("m", "plain")


def test_comparing_runs(tmp_path):
    for name, nll in (("a", 1.5), ("b", 1.5), ("c", 1.75)):
        RunFolder(tmp_path / name).write_part("m", "plain", record(), [row(0), row(1, nll=nll)], RESPONSES)
    same = compare_runs(tmp_path / "a", tmp_path / "b")
    assert same.same_bits and same.num_rows == 2
    different = compare_runs(tmp_path / "a", tmp_path / "c")
    assert not different.same_bits and different.num_different == 1 and different.max_nll_difference == 0.25
    RunFolder(tmp_path / "b").write_part("m", "plain", record(1, 1, 2), [row(2)], RESPONSES)
    assert compare_runs(tmp_path / "a", tmp_path / "b").num_only_in_one == 1
    RunFolder(tmp_path / "d").write_part("m", "plain", record(0, 0, 2), [row(0), row(1), row(2)], RESPONSES)
    assert compare_runs(tmp_path / "b", tmp_path / "d").same_bits


def test_the_columns_of_the_responses_are_those_of_the_format():
    """Written out, so that a change of the format is a decision and not an accident."""
    wanted = {
        "study": "string", "experiment": "string", "participant": "string", "response_idx": "int32",
        "response": "string", "char_start": "int32", "char_stop": "int32", "token_start": "int32",
        "token_stop": "int32", "num_tokens": "int32", "nll_nats": "double", "is_argmax": "bool", "rank": "int32",
        "entropy_nats": "double", "rt_ms": "double", "options": "list<item: string>",
        "option_nll_nats": "list<item: double>", "flags": "list<item: string>",
    }  # fmt: skip
    assert {field.name: str(field.type).replace("element", "item") for field in RESPONSES} == wanted


def test_per_token_columns():
    assert responses_schema(per_token=True).names[-2:] == ["token_ids", "token_nll_nats"]
    assert responses_schema(per_token=False).names == RESPONSES.names
