"""Rows out of files: JSON lines (plain, gzip, zip) and parquet, a line or a small batch at a time."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from psyfast.data.rows import FieldError, FileRecord, RawRow, Row, RowError, parse_row, to_json
from psyfast.errors import DataError

FILE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zip", ".parquet")

_HASH_BLOCK_BYTES = 1 << 20
# A row may hold a hundred kilobytes of text: few rows a batch, so that memory follows neither file nor row groups
# (the writer's data pages are what is left; pyarrow's hold 1,024 rows by default, two of them are unpacked at a time).
_PARQUET_BATCH_ROWS = 16
_PARQUET_BUFFER_BYTES = 1 << 20


def file_suffix(path: Path | PurePosixPath) -> str | None:
    """Which of FILE_SUFFIXES a file has (in any case), None for any other."""
    name = path.name.lower()
    return next((suffix for suffix in reversed(FILE_SUFFIXES) if name.endswith(suffix)), None)


def file_stem(path: Path | PurePosixPath) -> str:
    """The name without its suffix: `prompts` of prompts.jsonl.zip."""
    return path.name[: len(path.name) - len(file_suffix(path) or "")]


def study_of_path(path: Path | PurePosixPath) -> str:
    """The study of a file whose rows name none: its folder's name for prompts.*, its own stem otherwise."""
    parent = path.absolute().parent.name if isinstance(path, Path) else path.parent.name
    return parent if file_stem(path).lower() == "prompts" and parent else file_stem(path)


class FileSource:
    """One file of FILE_SUFFIXES."""

    local = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self._suffix = file_suffix(path)
        assert self._suffix is not None, path

    def rows(self, record: FileRecord) -> Iterator[Row]:
        """The rows in order. Raises DataError where the file is unreadable, empty, damaged or changes meanwhile."""
        with _as_data_error(self.name):
            before = self.path.stat()
            record.sha256, record.num_bytes = _hash_file(self.path)
            for row in self._rows():
                record.num_rows_read += 1
                yield row
            after = self.path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(f"{self.name}: changed while it was being read; run again once it is complete")
        if not record.num_rows_read:
            raise DataError(f"{self.name}: is empty, expected at least one row with a field 'text'")

    def _rows(self) -> Iterator[Row]:
        if self._suffix == ".parquet":
            yield from _parquet_rows(self.path)
        elif self._suffix == ".jsonl.zip":
            yield from _zip_rows(self.path)
        else:
            with gzip.open(self.path) if self._suffix == ".jsonl.gz" else self.path.open("rb") as stream:
                lines = cast(IO[bytes], stream)
                yield from _json_lines(lines, self.name, self.name, 0, study_of_path(self.path))


def _hash_file(path: Path) -> tuple[str, int]:
    """(sha256, number of bytes) of a file as it is on disk."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
            num_bytes += len(block)
    return digest.hexdigest(), num_bytes


@contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    """What the decompressors and the system raise while a file is read, as one kind of error."""
    try:
        yield
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{name}: damaged or cut short ({error}); fetch or compress it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{name}: cannot be read ({reason}); check that it is there and readable") from error


def _json_lines(stream: IO[bytes], file: str, source_file: str, first_row_idx: int, study: str) -> Iterator[Row]:
    """Rows of a stream of lines. Lines end at a line feed only: other line breaks of Unicode may stand in strings."""
    row_idx, offset = first_row_idx, 0
    for line_idx, raw in enumerate(stream):
        body = raw.removeprefix(codecs.BOM_UTF8) if line_idx == 0 else raw
        if body.strip():
            try:
                value = parse_row(_decode(body, offset + len(raw) - len(body)))
            except FieldError as error:
                yield RowError(file, line_idx + 1, error.field, error.reason)
            else:
                yield RawRow(value, file, line_idx + 1, "line", source_file, row_idx, study)
            row_idx += 1
        offset += len(raw)


def _decode(body: bytes, offset: int) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        reason = f"invalid UTF-8 at byte offset {at} (byte 0x{body[error.start]:02x}); save the file as UTF-8"
        raise FieldError("", reason) from None


def _zip_rows(path: Path) -> Iterator[Row]:
    """Rows of an archive, numbered through its members in their order."""
    num_rows = 0
    with zipfile.ZipFile(path) as archive:
        for member in _jsonl_members(archive, str(path)):
            file = f"{path}::{member.filename}"
            num_before = num_rows
            with _as_data_error(file), _open_member(archive, member, file) as stream:
                for row in _json_lines(stream, file, str(path), num_rows, _study_of_member(path, member)):
                    num_rows += 1
                    yield row
            if num_rows == num_before:
                raise DataError(f"{file}: is empty, expected at least one row with a field 'text'")


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: str) -> IO[bytes]:
    try:
        return archive.open(member)
    # All that zipfile raises here: RuntimeError for a member with a password, and NotImplementedError, which is one, for
    # a compression that it does not know. It has no narrower errors.
    except RuntimeError as error:
        raise DataError(f"{file}: cannot be unpacked ({error}); compress it again, without a password") from error


def _jsonl_members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The members to read; what file managers add by themselves (__MACOSX, hidden files) is passed over."""
    members = []
    for member in archive.infolist():
        parts = PurePosixPath(member.filename).parts
        if member.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        if file_suffix(PurePosixPath(member.filename)) != ".jsonl":
            raise DataError(f"{name}: holds '{member.filename}', expected .jsonl members only; take it out")
        members.append(member)
    if not members:
        raise DataError(f"{name}: holds no .jsonl member; expected one or more")
    return members


def _study_of_member(path: Path, member: zipfile.ZipInfo) -> str:
    # In STUDY/prompts.jsonl.zip the paths inside are whatever the contributor's machine had.
    if file_stem(path).lower() == "prompts":
        return study_of_path(path)
    inside = PurePosixPath(member.filename)
    is_study_folder = file_stem(inside).lower() == "prompts" and inside.parent.name
    return inside.parent.name if is_study_folder else file_stem(path)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, study = str(path), study_of_path(path)
    try:
        table = pq.ParquetFile(path, buffer_size=_PARQUET_BUFFER_BYTES)
    except pa.ArrowException as error:
        raise DataError(f"{name}: is not a readable parquet file ({_first_line(error)})") from error
    with table:
        _check_columns(table.schema_arrow.names, name)
        batches = table.iter_batches(batch_size=_PARQUET_BATCH_ROWS)
        row_idx = 0
        while True:
            try:
                batch = next(batches, None)
            except pa.ArrowException as error:
                raise DataError(
                    f"{name}: damaged after row {row_idx} ({_first_line(error)}); fetch it again"
                ) from error
            if batch is None:
                return
            for value in _batch_values(batch):
                if isinstance(value, FieldError):
                    yield RowError(name, row_idx + 1, value.field, value.reason, "row")
                else:
                    yield typed_row(value, name, "row", row_idx, study)
                row_idx += 1


def _batch_values(batch: Any) -> Iterator[dict[str, Any] | FieldError]:
    """The rows of a batch; in place of one that Python cannot hold (text not in UTF-8, a date past 9999) its error."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass  # to_pylist fails before it yields: look for the value, row by row
    for idx in range(batch.num_rows):
        field = ""
        try:
            value = {}
            for field, column in zip(batch.schema.names, batch.columns, strict=True):
                value[field] = column[idx].as_py()
        except (ValueError, OverflowError) as error:
            yield FieldError(field, f"holds a value that cannot be read ({_first_line(error)}); mend or drop it")
        else:
            yield value


def _check_columns(names: list[str], file: str) -> None:
    if "text" not in names:
        raise DataError(f"{file}: has no column 'text', expected one of strings; it has: {', '.join(names) or 'none'}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{file}: has more than one column '{doubled[0]}'; rename or drop one")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def typed_row(value: Any, file: str, unit: str, row_idx: int, study: str) -> RawRow | RowError:
    """A row of Python values (a parquet row, a dict) brought to what JSON would have held."""
    try:
        return RawRow(parse_row(to_json(value)), file, row_idx + 1, unit, file, row_idx, study)
    except FieldError as error:
        return RowError(file, row_idx + 1, error.field, error.reason, unit)
