"""Rows that are no file of their own: Hugging Face data sets (from the Hub, or saved to disk) and rows in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psyfast.data.records import Transcript
from psyfast.data.row_files import typed_row
from psyfast.data.rows import FieldError, FileRecord, RawRow, ReadyRow, Row, RowError, describe, to_json
from psyfast.errors import DataError

SPLIT = "train"
"""Every published set of the study has this split alone."""


class DatasetSource:
    """A data set of the Hub (`owner/name`, streamed) or a folder that `save_to_disk` made."""

    def __init__(self, name: str, *, folder: Path | None = None, revision: str | None = None) -> None:
        self.name = name if folder or revision is None else f"{name}@{revision}"
        self.local = folder is not None
        self._id = name
        self._folder = folder
        self._revision = revision

    def rows(self, record: FileRecord) -> Iterator[Row]:
        """The rows of the train split in order. Raises DataError where the data set cannot be had."""
        digest = _RowDigest(record)
        study = self._folder.absolute().name if self._folder else self._id.rpartition("/")[2]
        for row_idx, value in enumerate(self._values()):
            if row_idx == 0 and "text" not in value:
                raise DataError(f"{self.name}: has no column 'text'; it has: {', '.join(map(str, value)) or 'none'}")
            digest.add(value)
            yield typed_row(value, self.name, "row", row_idx, study)
        if not record.num_rows_read:
            raise DataError(f"{self.name}: is empty, expected at least one row with a field 'text'")

    def _values(self) -> Iterator[Any]:
        try:
            values = iter(self._load())
        except DataError:
            raise
        # The libraries below raise whatever their HTTP client, file format or loading script does: the family of these
        # errors is open. All of them mean that the data set cannot be had, so one DataError, with the cause in it,
        # stands for them.
        except Exception as error:
            raise self._unavailable(error) from error
        while True:
            try:
                value = next(values)
            except StopIteration:
                return
            # Rows are fetched as they are asked for, by the same libraries: the same open family.
            except Exception as error:
                raise self._unavailable(error) from error
            yield value

    def _load(self) -> Iterable[Any]:
        import datasets

        if self._folder is None:
            streamed: Iterable[Any] = datasets.load_dataset(
                self._id, split=SPLIT, streaming=True, revision=self._revision
            )
            return streamed
        saved = datasets.load_from_disk(str(self._folder))
        if not isinstance(saved, datasets.DatasetDict):
            return saved  # type: ignore[no-any-return]
        if SPLIT not in saved:
            raise DataError(f"{self.name}: has the splits {', '.join(saved)}, expected one named '{SPLIT}'")
        return saved[SPLIT]  # type: ignore[no-any-return]

    def _unavailable(self, error: Exception) -> DataError:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if self._folder is not None:
            return DataError(f"{self.name}: is laid out like a saved data set but cannot be read ({detail})")
        return DataError(
            f"{self.name}: no file or folder of that name here, and as a Hugging Face data set (split '{SPLIT}', "
            f"revision {self._revision or 'the newest'}) it could not be read ({detail}); check the name, the network "
            "and, for a private set, that you are logged in"
        )


class MemorySource:
    """Rows or transcripts that Python code hands over. An iterator can be read once, anything else again and again."""

    def __init__(self, rows: Iterable[Mapping[str, Any] | Transcript], name: str) -> None:
        self.name = name
        self.local = iter(rows) is not rows
        self._rows = rows
        self._is_spent = False

    def rows(self, record: FileRecord) -> Iterator[Row]:
        """The rows in order. Raises DataError where there are none, or where a spent iterator is read again."""
        if self._is_spent:
            raise DataError(f"{self.name}: was an iterator and is used up; hand over a list to read it again")
        self._is_spent = not self.local
        digest = _RowDigest(record)
        for row_idx, value in enumerate(self._rows):
            yield self._row(value, row_idx, digest)
        if not record.num_rows_read:
            raise DataError(f"{self.name}: is empty, expected at least one row with a field 'text'")

    def _row(self, value: Any, row_idx: int, digest: _RowDigest) -> RawRow | ReadyRow | RowError:
        if isinstance(value, Transcript):
            digest.add({**asdict(value), "persona": dict(value.persona)})
            return ReadyRow(value, self.name, row_idx + 1, "row")
        digest.add(value)
        if not isinstance(value, Mapping):
            reason = f"got {describe(value)}, expected a dict or a Transcript"
            return RowError(self.name, row_idx + 1, "", reason, "row")
        return typed_row(dict(value), self.name, "row", row_idx, self.name)


class _RowDigest:
    """sha256 over the canonical JSON of rows, a line each, kept up to date in the record after every row."""

    def __init__(self, record: FileRecord) -> None:
        self._record = record
        self._digest = hashlib.sha256()
        record.sha256 = self._digest.hexdigest()

    def add(self, value: Any) -> None:
        try:
            line = to_json(value) + "\n"
        except FieldError:
            line = "null\n"  # the row's own error follows
        self._digest.update(line.encode())
        self._record.sha256 = self._digest.hexdigest()
        self._record.num_bytes += len(line)
        self._record.num_rows_read += 1
