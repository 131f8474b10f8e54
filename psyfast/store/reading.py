"""Reading runs back, and saying whether two of them agree."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from psyfast.errors import RunError
from psyfast.store.run_folder import RunFolder, read_part_record
from psyfast.store.schema import check_version

KEY = ("study", "experiment", "participant", "response_idx")


def responses_dataset(run: RunFolder) -> ds.Dataset:
    """The responses of a run as one dataset, with the columns `model` and `condition` from the folders' names."""
    parts = sorted(run.path.glob("responses/model=*/condition=*/part-*.parquet"))
    if not parts:
        raise RunError(
            f"{run.path}: holds no responses yet; a run folder has responses/model=…/condition=…/part-*.parquet"
        )
    check_version((pq.read_schema(parts[0]).metadata or {}).get(b"schema_version", b"none").decode(), str(parts[0]))
    # Strings, not guesses: a model folder called `model=7` is still a name.
    hive = ds.HivePartitioning(pa.schema([("model", pa.string()), ("condition", pa.string())]))
    return ds.dataset(
        [str(part) for part in parts],
        format="parquet",
        partitioning=hive,
        partition_base_dir=str(run.path / "responses"),
    )


def read_participants(run: RunFolder) -> pa.Table:
    """participants.parquet."""
    return _open(run.participants_path).read()


def participant_rows(run: RunFolder, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of participants.parquet, a batch in memory at a time."""
    for batch in _open(run.participants_path).iter_batches(batch_size=500, columns=list(columns)):
        yield from batch.to_pylist()


def transcripts_file(run: RunFolder) -> pq.ParquetFile:
    """transcripts.parquet, opened; RunError where it cannot be read."""
    return _open(run.transcripts_path)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
        check_version((file.schema_arrow.metadata or {}).get(b"schema_version", b"none").decode(), str(path))
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path}: cannot be read ({error})") from error
    return file


@dataclass(frozen=True)
class Comparison:
    """How two runs of the same data relate: rows that only one has, rows that differ, the largest NLL difference."""

    num_rows: int
    num_only_in_one: int
    num_different: int
    max_nll_difference: float

    @property
    def same_bits(self) -> bool:
        """Whether every row is there twice with the same bits in every column."""
        return self.num_only_in_one == 0 and self.num_different == 0


def compare_runs(one: Path, other: Path) -> Comparison:
    """Compare two runs, however each was cut into parts: one that was resumed is cut otherwise than one made at once."""
    runs = (RunFolder(one), RunFolder(other))
    folders = {
        folder.relative_to(run.path) for run in runs for folder in run.path.glob("responses/model=*/condition=*")
    }
    num_rows = num_only = num_different = 0
    max_difference = 0.0
    for folder in sorted(folders):
        for blocks in _aligned_blocks([run.path / folder for run in runs]):
            present = [_joined(paths) for paths in blocks if paths]
            if len(present) == 1 or not _same_keys(present[0], present[1]):
                num_only += sum(table.num_rows for table in present)
                continue
            num_rows += present[0].num_rows
            different, difference = _differences(present[0], present[1])
            num_different += different
            max_difference = max(max_difference, difference)
    return Comparison(num_rows, num_only, num_different, max_difference)


def _aligned_blocks(folders: Sequence[Path]) -> Iterator[list[list[Path]]]:
    """Parts of each folder, block by block, in the order of the data; a block ends where a part ends in all of them."""
    records = [[(read_part_record(path), path) for path in folder.glob("part-*.parquet")] for folder in folders]
    borders = [
        {at for record, _ in of_one for at in (record.transcript_start, record.transcript_stop)} for of_one in records
    ]
    common = sorted(set.intersection(*borders))
    blocks: dict[int, list[list[Path]]] = {}
    for folder_idx, of_one in enumerate(records):
        for record, path in sorted(of_one, key=lambda pair: pair[0].transcript_start):
            block = blocks.setdefault(bisect_left(common, record.transcript_stop), [[] for _ in folders])
            block[folder_idx].append(path)
    for block_idx in sorted(blocks):
        yield blocks[block_idx]


def _joined(paths: Sequence[Path]) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read().replace_schema_metadata() for path in paths])


def _same_keys(one: pa.Table, other: pa.Table) -> bool:
    return bool(one.select(KEY).equals(other.select(KEY)))


def _differences(one: pa.Table, other: pa.Table) -> tuple[int, float]:
    if one.equals(other):
        return 0, 0.0
    num_different = sum(a != b for a, b in zip(one.to_pylist(), other.to_pylist(), strict=True))
    difference = pc.max(pc.abs(pc.subtract(one["nll_nats"], other["nll_nats"]))).as_py()
    return num_different, difference or 0.0
