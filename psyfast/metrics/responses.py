"""All responses as arrays: one numbering for every model and condition, and the columns of a cell in that numbering.

Letters: R responses of the source texts, P participants, G groups ('experiments' of the tables).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from psyfast.errors import RunError, UsageError
from psyfast.metrics.results import Cell, Part, Results
from psyfast.store.reading import read_participants
from psyfast.store.run_folder import RunFolder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

KEY = ["study", "experiment", "participant"]
STUDY = "study"


@dataclass(frozen=True, eq=False)
class ResponseIndex:
    """The numbering: responses by participant, in the order of the text; participants in the order of the data.

    participants: study, experiment, participant, num_responses, text_sha256, group (the name of its experiment in the
    tables). start_P: a participant's first response. group_P: index into `groups`, which are in order of name.
    """

    participants: pl.DataFrame
    groups: tuple[str, ...]
    group_P: Ints
    start_P: Ints
    num_responses: int

    @cached_property
    def participant_R(self) -> Ints:
        """Each response's participant."""
        return np.repeat(np.arange(len(self.start_P)), self.participants["num_responses"].to_numpy().astype(np.int64))

    @cached_property
    def group_R(self) -> Ints:
        """Each response's group."""
        return self.group_P[self.participant_R]

    @property
    def num_participants(self) -> int:
        """P."""
        return len(self.start_P)

    def sum_P(self, values_R: Floats | Bools) -> Floats:
        """Sums over each participant's responses, which stand one after another."""
        sums_P = np.zeros(self.num_participants)
        if len(self.with_responses):
            first = self.start_P[self.with_responses]
            sums_P[self.with_responses] = np.add.reduceat(values_R, first, dtype=np.float64)
        return sums_P

    def spread(self, values_G: Floats) -> Floats:
        """Each response's group's value."""
        return np.repeat(values_G[self.group_P], self.participants["num_responses"].to_numpy())

    @cached_property
    def with_responses(self) -> Ints:
        """Participants that have any."""
        return np.flatnonzero(self.participants["num_responses"].to_numpy() > 0)

    @cached_property
    def members_G(self) -> tuple[Ints, ...]:
        """Each group's participants."""
        order = np.argsort(self.group_P, kind="stable")
        return tuple(np.split(order, np.searchsorted(self.group_P[order], np.arange(1, len(self.groups)))))

    def sum_G(self, values_R: Floats | Bools) -> Floats:
        """Sums over each group's responses, added up participant by participant."""
        return self.group_sums(self.sum_P(values_R))

    def group_sums(self, values_P: Floats | Bools) -> Floats:
        """Sums over each group's participants."""
        return np.bincount(self.group_P, values_P, len(self.groups)).astype(np.float64, copy=False)


def index_responses(results: Results, group_by: str = STUDY) -> ResponseIndex:
    """Number the responses of all runs.

    Raises RunError where two runs hold one participant with other texts, UsageError where `group_by` is no column of
    participants.parquet.
    """
    tables = [_participants(run, group_by) for run in results.runs]
    joined = pl.concat(tables).unique(maintain_order=True)
    _refuse_other_texts(joined, tables, results.runs)
    joined = joined.with_columns(group=_group(group_by))
    groups = tuple(joined["group"].unique().sort().to_list())
    counts = joined["num_responses"].to_numpy().astype(np.int64)
    return ResponseIndex(
        participants=joined,
        groups=groups,
        group_P=joined["group"].replace_strict(groups, range(len(groups)), return_dtype=pl.Int64).to_numpy(),
        start_P=np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64),
        num_responses=int(counts.sum()),
    )


def _participants(run: RunFolder, group_by: str) -> pl.DataFrame:
    table = read_participants(run)
    if group_by not in table.column_names:
        raise UsageError(
            f"--group-by is '{group_by}', expected a column of participants.parquet: {', '.join(table.column_names)}"
        )
    columns = [*KEY, "num_responses", "text_sha256"]
    own = [] if group_by in columns else [group_by]
    frame = pl.DataFrame(table.select([*columns, *own]))
    if twice := frame.filter(frame.select(KEY).is_duplicated()).rows():
        raise RunError(f"{run.participants_path}: participant {twice[0][2]} of study {twice[0][0]} stands there twice")
    return frame


def _group(group_by: str) -> pl.Expr:
    """What stands as 'experiment' in the tables. An experiment is named inside its study, so the study stands before."""
    if group_by == "experiment":
        same = pl.col("experiment") == pl.col("study")
        return pl.when(same).then(pl.col("study")).otherwise(pl.concat_str("study", "experiment", separator="/"))
    return pl.col(group_by).cast(pl.String).fill_null("unknown")


def _refuse_other_texts(joined: pl.DataFrame, tables: Sequence[pl.DataFrame], runs: Sequence[RunFolder]) -> None:
    doubled = joined.filter(joined.select(KEY).is_duplicated())
    if doubled.is_empty():
        return
    key = doubled.row(0)[:3]
    mine = [pl.col(name) == value for name, value in zip(KEY, key, strict=True)]
    found = [(run, table.filter(*mine)) for run, table in zip(runs, tables, strict=True)]
    (one, first), (other, second) = [(run, rows) for run, rows in found if len(rows)][:2]
    raise RunError(
        f"participant {key[2]} of study {key[0]} is not the same in two runs: the text has sha256 "
        f"{first['text_sha256'][0]} in {one.path} and {second['text_sha256'][0]} in {other.path}"
    )


def read_columns(part: Part, columns: Sequence[str]) -> pl.DataFrame:
    """Columns of a cell's files in one run, in the order of the data."""
    try:
        frame = pl.scan_parquet(list(part.paths), glob=False, hive_partitioning=False).select(columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RunError(
            f"{part.paths[0].parent}: cannot be read ({error}); is it the folder of a psyfast run?"
        ) from error
    return frame


def response_rows(index: ResponseIndex, frame: pl.DataFrame, cell: Cell, part: Part) -> Ints:
    """The number of each row's response. Raises RunError for rows that participants.parquet does not announce."""
    where = f"{part.run}: model {cell.model}, condition {cell.condition}"
    starts = _first_rows(frame)
    keys = frame.select(KEY)[starts].join(
        index.participants.select(KEY).with_row_index("idx"), on=KEY, how="left", maintain_order="left"
    )
    if keys["idx"].null_count():
        row = keys.filter(pl.col("idx").is_null()).row(0)
        raise RunError(f"{where}: participant {row[2]} of study {row[0]} is not in participants.parquet")
    participant = keys["idx"].to_numpy().astype(np.int64)
    lengths = np.diff(np.append(starts, len(frame)))
    ordinal = frame["response_idx"].to_numpy().astype(np.int64)
    counts = index.participants["num_responses"].to_numpy().astype(np.int64)
    rows: Ints = np.repeat(index.start_P[participant], lengths) + ordinal
    outside = (ordinal < 0) | (ordinal >= np.repeat(counts[participant], lengths))
    _require_once(index, frame, rows, outside, where)
    return rows


def _first_rows(frame: pl.DataFrame) -> Ints:
    """Rows where another participant begins."""
    if frame.is_empty():
        return np.zeros(0, np.int64)
    changed = np.zeros(len(frame), bool)
    for name in KEY:
        column = frame[name]
        changed |= (column != column.shift(1)).fill_null(True).to_numpy()
    return np.flatnonzero(changed)


def _require_once(index: ResponseIndex, frame: pl.DataFrame, rows: Ints, outside: Bools, where: str) -> None:
    if outside.any():
        row = frame.row(int(np.argmax(outside)), named=True)
        raise RunError(
            f"{where}: holds response {row['response_idx']} of participant {row['participant']}, study {row['study']}, "
            "and participants.parquet says that there are fewer"
        )
    counts = np.bincount(rows, minlength=index.num_responses)
    if counts.max(initial=0) > 1:
        row = frame.row(int(np.flatnonzero(counts[rows] > 1)[0]), named=True)
        raise RunError(
            f"{where}: response {row['response_idx']} of participant {row['participant']}, study {row['study']}, stands "
            "there twice"
        )
