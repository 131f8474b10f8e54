"""Predictions without a language model, each of a response from what came before it: what a model has to beat.

All are computed over the responses that have a choice set and are one of it, in probabilities over that set. Counts begin
at 1/2 an option (Krichevsky & Trofimov 1981).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from psyfast.errors import DataError
from psyfast.metrics.choices import ChoiceSets
from psyfast.metrics.responses import KEY, Floats, Ints, ResponseIndex, read_columns
from psyfast.metrics.results import Cell, Part
from psyfast.metrics.row_numbers import RowNumbers

UNIFORM, RUNNING, MARKOV, OTHERS, OWN = "uniform", "running frequencies", "Markov chain", "other participants", "yours"
PRIOR = 0.5
KEY_COLUMNS = [*KEY, "response_idx"]


def baseline_nlls(
    numbers: RowNumbers, index: ResponseIndex, cell: Cell, part: Part, sets: ChoiceSets
) -> dict[str, Floats]:
    """NLL in nats by response ([R], NaN where there is none) of each baseline, from one run's responses."""
    label_R = _label_R(index, numbers.of(cell, part), part, sets)
    query = _Queries(index, sets)
    previous_R = np.full(index.num_responses, -1)
    previous_R[1:] = label_R[:-1]
    first_P = index.start_P[index.participants["num_responses"].to_numpy() > 0]
    previous_R[first_P] = -2  # the first response has a context of its own
    num_labels = len(sets.labels)
    context_R = index.participant_R * (num_labels + 2) + previous_R + 2
    found = {
        UNIFORM: np.log(sets.num_N),
        RUNNING: query.nll_N(_earlier(index, label_R, index.participant_R, query, num_labels)),
        MARKOV: query.nll_N(_earlier(index, label_R, context_R, query, num_labels)),
        OTHERS: query.nll_N(_of_others(index, label_R, query, num_labels)),
    }
    return {name: _spread(index, sets.rows_N, values_N) for name, values_N in found.items()}


class _Queries:
    """One question an option of a set: how often was this label seen?"""

    def __init__(self, index: ResponseIndex, sets: ChoiceSets) -> None:
        self.row_M = np.repeat(sets.rows_N, sets.num_N)
        self.label_M = sets.label_M
        self.start_N, self.own_M, self.num_N = sets.start_N, sets.start_N + sets.own_N, sets.num_N

    def nll_N(self, count_M: Floats) -> Floats:
        """−log of the response's share of the set's counts, each begun at PRIOR."""
        if not len(self.start_N):
            return np.zeros(0)
        total_N = np.add.reduceat(count_M, self.start_N) + PRIOR * self.num_N
        return np.asarray(np.log(total_N) - np.log(count_M[self.own_M] + PRIOR))


def _label_R(index: ResponseIndex, rows: Ints, part: Part, sets: ChoiceSets) -> Ints:
    """Each response's label; −1 where its text is no option anywhere."""
    frame = read_columns(part, ["response"])
    codes = frame["response"].str.strip_chars().replace_strict(
        pl.Series(sets.labels, dtype=pl.String), pl.Series(range(len(sets.labels)), dtype=pl.Int64), default=-1,
        return_dtype=pl.Int64,
    )  # fmt: skip
    label_R = np.full(index.num_responses, -1, np.int64)
    label_R[rows] = codes.to_numpy()
    return label_R


def _earlier(index: ResponseIndex, label_R: Ints, context_R: Ints, query: _Queries, num_labels: int) -> Floats:
    """How often the label followed the same context before the response, in the same participant."""
    known = np.flatnonzero(label_R >= 0)
    events, asked = context_R[known] * num_labels + label_R[known], context_R[query.row_M] * num_labels + query.label_M
    kinds = np.unique(events)
    asked_kind = np.searchsorted(kinds, asked)
    seen = np.zeros(len(asked), bool)
    inside = asked_kind < len(kinds)
    seen[inside] = kinds[asked_kind[inside]] == asked[inside]
    # Sorted by kind and then by number: the earlier ones stand between the kind's first and the response's own place.
    times = np.sort(np.searchsorted(kinds, events) * index.num_responses + known)
    first = np.searchsorted(times, asked_kind * index.num_responses)
    reached = np.searchsorted(times, asked_kind * index.num_responses + query.row_M)
    return np.where(seen, reached - first, 0).astype(np.float64)


def _of_others(index: ResponseIndex, label_R: Ints, query: _Queries, num_labels: int) -> Floats:
    """How often the experiment's other participants gave the label, anywhere."""
    known = label_R >= 0

    def counted(owner_R: Ints) -> Floats:
        kinds, counts = np.unique(owner_R[known] * num_labels + label_R[known], return_counts=True)
        asked = owner_R[query.row_M] * num_labels + query.label_M
        place = np.minimum(np.searchsorted(kinds, asked), max(0, len(kinds) - 1))
        if not len(kinds):
            return np.zeros(len(asked))
        return np.where(kinds[place] == asked, counts[place], 0).astype(np.float64)

    return counted(index.group_R) - counted(index.participant_R)


def _spread(index: ResponseIndex, rows_N: Ints, values_N: Floats) -> Floats:
    nll_R = np.full(index.num_responses, np.nan)
    nll_R[rows_N] = values_N
    return nll_R


def read_baseline(path: Path, index: ResponseIndex) -> Floats:
    """The NLLs of a user's own model, [R], NaN where the file has none.

    Raises DataError for a file without the key's columns and nll_nats, with a response twice, with negative NLLs or none.
    """
    columns = [*KEY_COLUMNS, "nll_nats"]
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error
    if missing := [name for name in columns if name not in frame.columns]:
        raise DataError(f"{path}: lacks the column '{missing[0]}', expected {', '.join(columns)}")
    try:
        numbers = frame["response_idx"].cast(pl.Float64)
        if (broken := numbers.filter(numbers != numbers.floor())).len():
            raise DataError(f"{path}: response_idx holds {broken[0]}, expected whole numbers from 0")
        frame = frame.select(*(pl.col(name).cast(pl.String) for name in KEY), pl.col("response_idx").cast(pl.Int64),
                             pl.col("nll_nats").cast(pl.Float64))  # fmt: skip
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: response_idx and nll_nats must be numbers ({error})") from error
    if frame.select(KEY_COLUMNS).null_count().sum_horizontal().item():
        raise DataError(f"{path}: has a row without study, experiment, participant or response_idx; name the response")
    people = index.participants.select(*KEY, "num_responses").with_columns(start=pl.Series(index.start_P))
    joined = frame.join(people, on=KEY, how="inner", maintain_order="left").filter(
        (pl.col("response_idx") >= 0) & (pl.col("response_idx") < pl.col("num_responses"))
    )
    if joined.is_empty():
        raise DataError(f"{path}: none of its {len(frame):,} rows is a response of the runs; compare the key's columns")
    rows = (joined["start"] + joined["response_idx"]).to_numpy().astype(np.int64)
    if len(np.unique(rows)) < len(rows):
        raise DataError(f"{path}: holds a response twice; keep one row for each")
    values = joined["nll_nats"].fill_null(np.nan).to_numpy()
    if (bad := values[(values < 0) | np.isinf(values)]).size:
        raise DataError(f"{path}: nll_nats holds {bad[0]}, expected −log p in nats, 0 or more")
    if np.isnan(values).all():
        raise DataError(f"{path}: nll_nats is empty in every row that is a response of the runs, expected nats")
    return _spread(index, rows, values)
