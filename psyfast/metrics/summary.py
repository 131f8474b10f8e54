"""The table of a run: for every model, condition and study how well the responses are predicted (PROTOCOL 4 and 5)."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from psyfast.store.reading import participant_rows, responses_dataset
from psyfast.store.run_folder import RunFolder

TRUE_NLL = "true_nll_nats"
COLUMNS = [
    "model",
    "condition",
    "study",
    "experiment",
    "participant",
    "response_idx",
    "response",
    "nll_nats",
    "options",
]


@dataclass(frozen=True)
class StudySummary:
    """One row of the table; `study` is None in the row over all studies (the unweighted mean of the studies' figures).

    num_responses: marked responses; num_scored: those with an NLL. mean_nll_nats: over the scored. guess_nats: mean of
    ln(number of options) over the scored responses that have 2 options or more and are among them; pseudo_r2: 1 − Σ NLL /
    Σ guess over the same; num_with_options: how many those are, num_outside_options: how many are none of their options.
    best_nats: the mean NLL under the probabilities that generated simulated data. tok_per_s: transcript tokens a second
    of reading, planning and computing.
    """

    model_id: str
    condition: str
    study: str | None
    num_responses: int
    num_scored: int
    num_with_options: int
    num_outside_options: int
    mean_nll_nats: float | None
    guess_nats: float | None
    pseudo_r2: float | None
    best_nats: float | None
    tok_per_s: float | None


@dataclass
class _Sums:
    """Running sums of one model, condition and study."""

    num_responses: int = 0
    num_scored: int = 0
    nll: float = 0.0
    num_with_options: int = 0
    num_outside_options: int = 0
    nll_with_options: float = 0.0
    guess: float = 0.0
    num_true: int = 0
    true_nll: float = 0.0


def summarise(run: RunFolder) -> tuple[StudySummary, ...]:
    """Summaries of a run's tables, models and studies in order of name; the row over all studies last in each model."""
    true_nlls = _true_nlls(run)
    sums: dict[tuple[str, str, str], _Sums] = defaultdict(_Sums)
    for batch in responses_dataset(run).to_batches(columns=COLUMNS):
        _add(batch, sums, true_nlls)
    rows: list[StudySummary] = []
    for model_id, condition in dict.fromkeys((model, condition) for model, condition, _ in sorted(sums)):
        rates = _rates(run, model_id, condition)
        of_model = [
            _row(model_id, condition, study, sums[model_id, condition, study], rates.get(study))
            for study in sorted(study for m, c, study in sums if (m, c) == (model_id, condition))
        ]
        rows += [*of_model, _overall(of_model, rates.get(None))]
    return tuple(rows)


def _add(batch: pa.RecordBatch, sums: dict[tuple[str, str, str], _Sums], true_nlls: _TrueNlls) -> None:
    columns = [batch.column(name).to_pylist() for name in COLUMNS]
    for model, condition, study, experiment, participant, response_idx, response, nll, options in zip(
        *columns, strict=True
    ):
        total = sums[model, condition, study]
        total.num_responses += 1
        if nll is None:
            continue
        total.num_scored += 1
        total.nll += nll
        if options is None or len(options) < 2:  # a set of one is never used (PROTOCOL 4)
            pass
        elif response.strip() not in options:
            total.num_outside_options += 1
        else:
            total.num_with_options += 1
            total.nll_with_options += nll
            total.guess += math.log(len(options))
        true = true_nlls.get((study, experiment, participant))
        if true is not None and response_idx < len(true):
            total.num_true += 1
            total.true_nll += true[response_idx]


_TrueNlls = Mapping[tuple[str, str, str], list[float]]


def _true_nlls(run: RunFolder) -> _TrueNlls:
    """The generating probabilities' NLL of each response, of participants whose data carry them."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in participant_rows(run, ["study", "experiment", "participant", "extra"]):
        if row["extra"] and TRUE_NLL in row["extra"]:
            values = json.loads(row["extra"]).get(TRUE_NLL)
            if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values):
                found[row["study"], row["experiment"], row["participant"]] = values
    return found


def _rates(run: RunFolder, model_id: str, condition: str) -> dict[str | None, float]:
    """Tokens a second by study (a window's time is shared out by tokens) and, under None, over all."""
    tokens: dict[str | None, float] = defaultdict(float)
    seconds: dict[str | None, float] = defaultdict(float)
    for part in run.finished_parts(model_id, condition):
        spent = sum(part.seconds.values())
        for study, num_tokens in part.tokens_by_study.items():
            tokens[study] += num_tokens
            seconds[study] += spent * num_tokens / max(1, part.num_tokens)
        tokens[None] += part.num_tokens
        seconds[None] += spent
    return {study: tokens[study] / seconds[study] for study in tokens if seconds[study] > 0}


def _row(model_id: str, condition: str, study: str, total: _Sums, rate: float | None) -> StudySummary:
    return StudySummary(
        model_id=model_id,
        condition=condition,
        study=study,
        num_responses=total.num_responses,
        num_scored=total.num_scored,
        num_with_options=total.num_with_options,
        num_outside_options=total.num_outside_options,
        mean_nll_nats=_ratio(total.nll, total.num_scored),
        guess_nats=_ratio(total.guess, total.num_with_options),
        pseudo_r2=1 - total.nll_with_options / total.guess if total.guess > 0 else None,
        best_nats=_ratio(total.true_nll, total.num_true),
        tok_per_s=rate,
    )


def _overall(rows: list[StudySummary], rate: float | None) -> StudySummary:
    return StudySummary(
        model_id=rows[0].model_id,
        condition=rows[0].condition,
        study=None,
        num_responses=sum(row.num_responses for row in rows),
        num_scored=sum(row.num_scored for row in rows),
        num_with_options=sum(row.num_with_options for row in rows),
        num_outside_options=sum(row.num_outside_options for row in rows),
        mean_nll_nats=_mean(row.mean_nll_nats for row in rows),
        guess_nats=_mean(row.guess_nats for row in rows),
        pseudo_r2=_mean(row.pseudo_r2 for row in rows),
        best_nats=_mean(row.best_nats for row in rows),
        tok_per_s=rate,
    )


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
