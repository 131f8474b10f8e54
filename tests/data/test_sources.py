"""Sources that cannot be had as a whole: files, folders, data sets of the Hub; and how much memory reading takes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_sources import (
    ROWS,
    as_jsonl,
    lines,
    message,
    placeless,
    read,
    row,
    write,
    write_zip,
)

from psyfast.data.transcripts import ReadOptions, TranscriptReader, transcripts_from_rows
from psyfast.errors import DataError, UsageError

# --- bad files


def test_an_empty_file_is_an_error_even_among_others(tmp_path: Path) -> None:
    write(tmp_path / "a" / "prompts.jsonl", [row()])
    empty = write(tmp_path / "b" / "prompts.jsonl", b"\n \n")
    assert message(tmp_path).startswith(f"{empty}: is empty")
    assert "x.jsonl: is empty" in message(write_zip(tmp_path / "z.jsonl.zip", {"x.jsonl": b""}))
    assert "is empty" in message(write(tmp_path / "e.jsonl.gz", gzip.compress(b"")))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "e.parquet")
    assert "is empty" in message(tmp_path / "e.parquet")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"a": 1}, {"b": 2}])
    assert f"{path}: no transcript was read: 2 rows, of them 2 skipped (first: {path}, line 1)" in message(
        path, on_bad_row="skip"
    )
    assert "study 'q' does not occur in the sources; found: s" in message(write(path, [row()]), studies=("q",))


@pytest.mark.parametrize("keep", [0.5, 0.95])
def test_a_gzip_cut_short(tmp_path: Path, keep: float) -> None:
    packed = gzip.compress(lines([row(idx, note=os.urandom(40).hex()) for idx in range(200)]))
    path = write(tmp_path / "x.jsonl.gz", packed[: int(len(packed) * keep)])
    for mode in ("error", "skip"):
        assert f"{path}: damaged or cut short" in message(path, on_bad_row=mode)


def test_a_gzip_with_flipped_bytes(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(lines([row(idx, note=os.urandom(40).hex()) for idx in range(200)])))
    packed[-6] ^= 0xFF  # the checksum
    assert "damaged or cut short" in message(write(tmp_path / "x.jsonl.gz", bytes(packed)))
    assert "damaged or cut short" in message(write(tmp_path / "y.jsonl.gz", b"not gzip at all"))


def test_a_damaged_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.jsonl.zip", {"x.jsonl": lines([row(idx) for idx in range(200)])})
    packed = bytearray(path.read_bytes())
    assert "damaged or cut short" in message(write(tmp_path / "y.jsonl.zip", bytes(packed[: len(packed) // 2])))
    packed[60:80] = bytes(20)
    assert "x.jsonl: damaged or cut short" in message(write(path, bytes(packed)))


def test_a_zip_with_a_password_or_unknown_compression(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.jsonl.zip", {"x.jsonl": lines([row()])})
    packed = bytearray(path.read_bytes())
    central = packed.index(b"PK\x01\x02")
    encrypted = bytearray(packed)
    encrypted[6] |= 1
    encrypted[central + 8] |= 1
    assert "cannot be unpacked" in message(write(path, bytes(encrypted)))
    unknown = bytearray(packed)
    unknown[8] = unknown[central + 10] = 77
    assert "cannot be unpacked" in message(write(path, bytes(unknown)))


def test_a_zip_with_other_members(tmp_path: Path) -> None:
    said = message(write_zip(tmp_path / "x.jsonl.zip", {"x.jsonl": lines([row()]), "README.md": b"hi"}))
    assert "holds 'README.md', expected .jsonl members only" in said
    assert "holds no .jsonl member" in message(write_zip(tmp_path / "y.jsonl.zip", {}))


def test_parquet_files_that_are_none(tmp_path: Path) -> None:
    assert "is not a readable parquet file" in message(write(tmp_path / "x.parquet", b"PAR1 but not really"))
    assert "is not a readable parquet file" in message(write(tmp_path / "y.parquet", b""))
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), tmp_path / "z.parquet")
    assert "has no column 'text', expected one of strings; it has: prompt, n" in message(tmp_path / "z.parquet")


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    notes = [os.urandom(200).hex() for _ in range(500)]
    pq.write_table(pa.table({"text": notes}), path, compression="snappy", use_dictionary=False)
    packed = bytearray(path.read_bytes())
    packed[10:2000] = bytes(1990)
    assert str(path) in message(write(path, bytes(packed)))


def test_an_unknown_suffix(tmp_path: Path) -> None:
    said = message(write(tmp_path / "x.csv", b"a,b"))
    assert "unknown suffix '.csv', expected one of .jsonl, .jsonl.gz, .jsonl.zip, .parquet" in said


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "X.JSONL", [row()]))) == 1


def test_a_missing_path_names_close_ones(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", [row()])
    assert "did you mean prompts.jsonl?" in message(tmp_path / "promts.jsonl")
    assert f"there is no folder {tmp_path / 'nowhere'} either" in message(tmp_path / "nowhere" / "x.jsonl")


def test_a_slip_in_a_relative_path_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "psych201" / "prompts.jsonl", [row()])
    monkeypatch.chdir(tmp_path)
    assert "did you mean psych201?" in message("data/pysch201")


def test_folders_without_transcripts(tmp_path: Path) -> None:
    assert "holds no transcripts" in message(tmp_path)
    write(tmp_path / "deep" / "table.parquet", b"")
    assert "holds no STUDY/prompts.jsonl, only" in message(tmp_path)


def test_the_same_study_in_two_forms_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s" / "prompts.jsonl", [row()])
    write(tmp_path / "s" / "prompts.jsonl.gz", gzip.compress(lines([row()])))
    assert "holds both prompts.jsonl and prompts.jsonl.gz; keep one" in message(tmp_path)


def test_a_source_given_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s" / "prompts.jsonl", [row()])
    assert "was given twice" in message(tmp_path, path)


def test_no_source() -> None:
    assert "no source was given" in message()


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [row(1), row(2)])
    stream = iter(TranscriptReader(path))
    next(stream)
    write(path, [row(1), row(2), row(3)])
    with pytest.raises(DataError, match=r"x\.jsonl: changed while it was being read"):
        list(stream)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [row()])
    path.chmod(0)
    assert "cannot be read" in message(path)


# --- data sets of the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for datasets.load_dataset: `rows` is what it streams, an exception is raised instead."""
    datasets = pytest.importorskip("datasets")
    state: dict[str, Any] = {"rows": ROWS}

    def load_dataset(name: str, **kwargs: Any) -> Iterator[Any]:
        state["call"] = (name, kwargs)
        if isinstance(state["rows"], Exception):
            raise state["rows"]
        return iter(state["rows"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def test_a_dataset_is_streamed(hub: dict[str, Any]) -> None:
    reader = TranscriptReader("owner/Psych-201", ReadOptions(revision="abc"))
    assert placeless(reader) == placeless(transcripts_from_rows(ROWS))
    assert hub["call"] == ("owner/Psych-201", {"split": "train", "streaming": True, "revision": "abc"})
    (record,) = reader.report.files
    assert (record.path, record.num_rows_read, len(record.sha256)) == ("owner/Psych-201@abc", 3, 64)


def test_a_dataset_and_a_study_that_does_not_occur(hub: dict[str, Any]) -> None:
    assert "study 'q' does not occur in the sources; found: s, t" in message("owner/name", studies=("q",))
    assert len(read("owner/name", studies=("t",))) == 1


def test_a_dataset_that_cannot_be_had(hub: dict[str, Any]) -> None:
    hub["rows"] = ConnectionError("Couldn't reach\nthe Hub")
    said = message("owner/name", revision="v1")
    assert said.startswith("owner/name@v1: no file or folder of that name here, and as a Hugging Face data set")
    assert "ConnectionError: Couldn't reach the Hub" in said
    assert "revision v1" in said


def test_a_dataset_that_breaks_off(hub: dict[str, Any]) -> None:
    def rows() -> Iterator[Any]:
        yield ROWS[0]
        raise TimeoutError("gone")

    hub["rows"] = rows()
    assert "TimeoutError: gone" in message("owner/name")


def test_a_dataset_without_text(hub: dict[str, Any]) -> None:
    hub["rows"] = [{"prompt": "a"}]
    assert "owner/name: has no column 'text'; it has: prompt" in message("owner/name")


def test_a_revision_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no source is a data set of the Hub"):
        read(as_jsonl(tmp_path), revision="main")


def test_saved_splits_without_train(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"test": datasets.Dataset.from_list([row()])}).save_to_disk(tmp_path / "saved")
    assert "has the splits test, expected one named 'train'" in message(tmp_path / "saved")


# --- size

# VmHWM and not getrusage: ru_maxrss of a child starts at what its parent had.
PEAK_PROGRAM = """
import re, sys
from pathlib import Path
from psyfast.data.transcripts import TranscriptReader
if sys.argv[1].endswith(".parquet"): import pyarrow.parquet
peak_kb = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before_kb = peak_kb()
num = sum(1 for _ in TranscriptReader(sys.argv[1]))
print(num, (peak_kb() - before_kb) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zip", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    num_rows = 2000
    body = "You press <<J>>. " + "It was not to be. " * 2100  # 38 kB, as a real session; 75 MB in all
    path = tmp_path / f"big{suffix}"
    rows = (row(idx, text=f"{idx} {body}") for idx in range(num_rows))
    if suffix == ".parquet":
        schema = pa.schema([(name, pa.string()) for name in ("text", "study", "experiment", "participant")])
        table = pa.Table.from_pylist([{**value, "participant": str(value["participant"])} for value in rows], schema)
        # One row group, in pages of some rows: a page is the least that a reader must unpack.
        pq.write_table(table, path, use_dictionary=False, row_group_size=num_rows, write_batch_size=32)
    elif suffix == ".jsonl.zip":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.jsonl", "w") as to,
        ):
            to.writelines(json.dumps(value).encode() + b"\n" for value in rows)
    else:
        with gzip.open(path, "wb", compresslevel=1) if suffix == ".jsonl.gz" else path.open("wb") as to:
            to.writelines(json.dumps(value).encode() + b"\n" for value in rows)
    got = subprocess.run(
        [sys.executable, "-c", PEAK_PROGRAM, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    num_read, grown_mb = map(int, got.stdout.split())
    assert num_read == num_rows
    assert grown_mb < 40, f"reading {path.name} took {grown_mb} MB"


def test_reading_json_lines_imports_neither_pyarrow_nor_datasets(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    program = (
        "import sys; from psyfast.data.transcripts import TranscriptReader; list(TranscriptReader(sys.argv[1])); "
        "print([name for name in ('pyarrow', 'datasets', 'torch', 'numpy') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    got = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, env=env
    )
    assert got.stdout.strip() == "[]"
