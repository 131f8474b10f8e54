"""Sources written to disk for the tests of reading: the same rows in every form, and short hands for reading them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psyfast.data.records import Transcript
from psyfast.data.transcripts import ReadOptions, TranscriptReader
from psyfast.errors import DataError

ROWS: list[dict[str, Any]] = [
    {
        "text": "Ünïcode. You press <<J>>. You press << K >>.\nA line separator\u2028inside.",
        "study": "s",
        "experiment": "s/1",
        "participant": "a",
        "RTs": [512.0, math.nan],
        "age": 25.0,
        "options": ["J", "K"],
        "notes": {"x": [1, 2]},
    },
    {"text": "You press <<K>>.", "study": "s", "experiment": "s/1", "participant": "b", "RTs": None, "age": None},
    {"text": "You press <<J>>.", "study": "t", "experiment": "t/1", "participant": "a", "RTs": [-4.0], "score": 0.5},
]
SKIP = ReadOptions(on_bad_row="skip")


def row(participant: Any = "p", **fields: Any) -> dict[str, Any]:
    return {"text": "<<a>>", "study": "s", "experiment": "e", "participant": participant, **fields}


def lines(rows: Iterable[Any]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in rows).encode()


def write(path: Path, content: bytes | Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else lines(content))
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def read(*sources: Any, **options: Any) -> list[Transcript]:
    return list(TranscriptReader(sources, ReadOptions(**options)))


def message(*sources: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(*sources, **options)
    return str(caught.value)


def placeless(transcripts: Iterable[Transcript]) -> list[Transcript]:
    return [dataclasses.replace(transcript, source_file="") for transcript in transcripts]


def keys(transcripts: Iterable[Transcript]) -> list[tuple[str, str, str]]:
    return [transcript.key for transcript in transcripts]


# --- ROWS in every form


def as_jsonl(folder: Path) -> Path:
    return write(folder / "x.jsonl", ROWS)


def as_jsonl_with_oddities(folder: Path) -> Path:
    return write(folder / "x.jsonl", b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n\r\n  \n").rstrip())


def as_gzip(folder: Path) -> Path:
    return write(folder / "x.jsonl.gz", gzip.compress(lines(ROWS)))


def as_zip(folder: Path) -> Path:
    return write_zip(folder / "x.jsonl.zip", {"x.jsonl": lines(ROWS), "__MACOSX/._x.jsonl": b"\0"})


def as_zip_of_two(folder: Path) -> Path:
    return write_zip(folder / "x.jsonl.zip", {"one.jsonl": lines(ROWS[:2]), "two.jsonl": lines(ROWS[2:])})


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS, schema=ROWS_SCHEMA), folder / "x.parquet", row_group_size=2)
    return folder / "x.parquet"


def as_folder_of_files(folder: Path) -> Path:
    write(folder / "x.jsonl", ROWS)
    return folder


def as_saved_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset(pa.Table.from_pylist(ROWS, schema=ROWS_SCHEMA)).save_to_disk(folder / "saved")
    return folder / "saved"


def as_saved_splits(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset(pa.Table.from_pylist(ROWS, schema=ROWS_SCHEMA))
    datasets.DatasetDict({"train": dataset}).save_to_disk(folder / "saved")
    return folder / "saved"


ROWS_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("study", pa.string()),
        ("experiment", pa.string()),
        ("participant", pa.string()),
        ("RTs", pa.list_(pa.float64())),
        ("age", pa.float64()),
        ("options", pa.list_(pa.string())),
        ("notes", pa.struct([("x", pa.list_(pa.int64()))])),
        ("score", pa.float64()),
    ]
)
