"""One run's folder: where its files lie, which parts are finished, and writing new ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from psyfast.errors import RunError
from psyfast.store.atomic import TEMPORARY_PREFIX, whole_file, write_json
from psyfast.store.schema import SCHEMA_VERSION, check_version, stamped

Row = Mapping[str, Any]
ROWS_A_GROUP = 500


@dataclass(frozen=True)
class PartRecord:
    """What a part says of itself: the transcripts [transcript_start, transcript_stop) it covers, and what they cost.

    num_tokens counts the tokens of every request, num_unique_tokens those computed after sharing, also with the
    conditions that stand before this one in the same window. seconds: by stage, a window's shared out by unique tokens.
    """

    part_idx: int
    transcript_start: int
    transcript_stop: int
    num_tokens: int
    num_unique_tokens: int
    num_scored_rows: int
    num_responses: int
    flags: dict[str, int]
    tokens_by_study: dict[str, int]
    seconds: dict[str, float]


class RunFolder:
    """Paths and tables of a run; creating one refuses a folder that holds something."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_path = path / "manifest.json"
        self.participants_path = path / "participants.parquet"
        self.transcripts_path = path / "transcripts.parquet"

    def is_started(self) -> bool:
        """Whether a manifest stands there, so that there is something to resume."""
        return self.manifest_path.is_file()

    def require_empty(self) -> None:
        """RunError unless the folder is absent, empty, or holds only what a run killed at its very start left."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; give -o a folder that does not exist yet")
        if self.is_started():
            raise RunError(
                f"{self.path}: holds a run already; add --resume to go on with it, or give -o another folder"
            )
        own = (TEMPORARY_PREFIX, self.participants_path.name, self.transcripts_path.name)
        if self.path.is_dir() and (other := [p.name for p in self.path.iterdir() if not p.name.startswith(own)]):
            raise RunError(f"{self.path}: is not empty ({other[0]} …); give -o a folder that does not exist yet")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, and clear what a killed one left half written. RunError if it is held."""
        import fcntl

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be used as a run's folder ({error}); give -o another one") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: another process is writing this run; wait for it, or stop it") from error
            for leftover in self.path.rglob(TEMPORARY_PREFIX + "*"):
                leftover.unlink()
            with self.unless_empty():
                yield
        finally:
            os.close(descriptor)

    @contextmanager
    def unless_empty(self) -> Iterator[None]:
        """Should the block fail and leave the folder empty, the folder goes, too."""
        try:
            yield
        except BaseException:
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()
            raise

    def read_manifest(self) -> dict[str, Any]:
        """manifest.json; RunError where it cannot be read or is of a newer format."""
        return read_manifest(self.manifest_path)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write manifest.json, stamped with the format's version."""
        write_json(self.manifest_path, {"schema_version": SCHEMA_VERSION, **manifest})

    def part_folder(self, model_id: str, condition: str) -> Path:
        """Where the parts of a model under a condition lie."""
        # Quoted as readers of Hive-style folders expect it: `history=3` has an equals sign of its own.
        return self.path / "responses" / f"model={model_id}" / f"condition={quote(condition, safe='')}"

    def has_tables(self) -> bool:
        """Whether the tables of participants and transcripts are there."""
        return self.participants_path.is_file() and self.transcripts_path.is_file()

    def has_parts(self) -> bool:
        """Whether any responses lie there."""
        return any(self.path.glob("responses/model=*/condition=*/part-*.parquet"))

    def write_part(
        self, model_id: str, condition: str, record: PartRecord, rows: Sequence[Row], schema: pa.Schema
    ) -> None:
        """Write one part, whole or not at all."""
        table = pa.Table.from_pylist([dict(row) for row in rows], stamped(schema, {"part": json.dumps(asdict(record))}))
        with whole_file(self.part_folder(model_id, condition) / f"part-{record.part_idx:05d}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def finished_parts(self, model_id: str, condition: str) -> list[PartRecord]:
        """Records of the parts that are there, in the order of what they cover."""
        paths = sorted(self.part_folder(model_id, condition).glob("part-*.parquet"))
        return sorted((read_part_record(path) for path in paths), key=lambda record: record.transcript_start)


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest by its path; RunError where there is none, it cannot be read, or it is of a newer format."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        raise RunError(f"{path}: not there; a run folder holds a manifest.json") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read as a run's manifest ({error})") from error
    check_version(version, str(path))
    return dict(manifest)


def read_part_record(path: Path) -> PartRecord:
    """What a part says of itself."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        check_version(metadata[b"schema_version"].decode(), str(path))
        return PartRecord(**json.loads(metadata[b"part"]))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: not a part of a psyfast run ({error}); remove it and --resume to make it again"
        ) from error


def table_says(path: Path, key: str) -> str | None:
    """What a table of this run says of itself under a key; None where it does not, or is not there."""
    if not path.is_file():
        return None
    try:
        said = (pq.read_schema(path).metadata or {}).get(key.encode())
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path}: cannot be read ({error}); remove it and --resume to make it again") from error
    return None if said is None else said.decode()


@contextmanager
def streamed_table(
    path: Path, schema: pa.Schema, *, extra: Mapping[str, str] | None = None, keep: bool = False
) -> Iterator[Callable[[Row], None]]:
    """A Parquet file that grows a row group at a time; yields the function that adds a row. Whole or not there.

    extra: what the file says of itself. keep: the rows that stand there already come first, with nulls
    in columns that they lack.
    """
    whole = stamped(schema, dict(extra or {}))
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, whole, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        if keep:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS_A_GROUP):
                writer.write_table(pa.Table.from_pylist(batch.to_pylist(), whole))

        def add(row: Row) -> None:
            group.append(dict(row))
            if len(group) >= ROWS_A_GROUP:
                flush()

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(group, whole))
            group.clear()

        yield add
        flush()
