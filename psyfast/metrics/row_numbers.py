"""Which response each row of a cell's files is. Models of one run hold the same key columns: they are decoded once."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import pyarrow.parquet as pq

from psyfast.metrics.responses import KEY, Ints, ResponseIndex, read_columns, response_rows
from psyfast.metrics.results import Cell, Part

KEY_COLUMNS = (*KEY, "response_idx")


def columns_sha256(part: Part, columns: Sequence[str]) -> str:
    """A hash of some columns' bytes as they lie in a part's files: where two are equal, the columns are.

    Columns of the same values may have other bytes, such as those of files that are cut elsewhere.
    """
    found = hashlib.sha256()
    for path in part.paths:
        metadata = pq.read_metadata(path)
        with path.open("rb") as file:
            for group_idx in range(metadata.num_row_groups):
                group = metadata.row_group(group_idx)
                for chunk in (group.column(idx) for idx in range(group.num_columns)):
                    if chunk.path_in_schema.split(".")[0] not in columns:
                        continue
                    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
                    file.seek(start)
                    facts = (chunk.path_in_schema, chunk.physical_type, chunk.compression, chunk.num_values)
                    found.update(repr((*facts, chunk.total_compressed_size)).encode())
                    found.update(file.read(chunk.total_compressed_size))
    return found.hexdigest()


class RowNumbers:
    """Numbers the rows of cells' files, and keeps the last few numberings: 8 bytes a response each."""

    def __init__(self, index: ResponseIndex, num_kept: int = 4) -> None:
        self._index, self._num_kept = index, num_kept
        self._kept: dict[str, Ints] = {}
        self._lock = threading.Lock()

    def of(self, cell: Cell, part: Part) -> Ints:
        """The number of each row's response. Raises RunError as `response_rows` does."""
        key = columns_sha256(part, KEY_COLUMNS)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            rows = response_rows(self._index, read_columns(part, KEY_COLUMNS), cell, part)
            self._kept[key] = rows
            while len(self._kept) > self._num_kept:
                self._kept.pop(next(iter(self._kept)))
            return rows
