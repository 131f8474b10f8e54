"""How well each model predicts each experiment: NLL and accuracy (PROTOCOL 5, the first three points)."""

from __future__ import annotations

import numpy as np
import polars as pl

from psyfast.metrics.baselines import MARKOV
from psyfast.metrics.bootstrap import FIXED, RANDOM
from psyfast.metrics.categories import Categories
from psyfast.metrics.group_moments import group_moments
from psyfast.metrics.pairs import PairTable
from psyfast.metrics.responses import Floats, ResponseIndex
from psyfast.metrics.results import Cell, Results
from psyfast.metrics.schema import table
from psyfast.metrics.scores import CellScores

Row = dict[str, object]


def experiment_rows(index: ResponseIndex, cell: Cell, scores: CellScores, categories: Categories) -> list[Row]:
    """Rows of `experiments` for one cell: experiments that it has rows of."""
    nll = scores.moments
    accuracy_G = _accuracy(index, scores)
    present_P = index.sum_P(scores.present_R)
    num_participants_G, num_responses_G = index.group_sums(present_P > 0), index.group_sums(present_P)
    sd_G = nll.sd_G(1)
    return [
        {
            "model": cell.model,
            "condition": cell.condition,
            "experiment": group,
            "category": "; ".join(categories.of(group)) if categories.names else None,
            "num_participants": int(num_participants_G[idx]),
            "num_responses": int(num_responses_G[idx]),
            "num_scored": int(nll.num_G[idx]),
            "nll_nats": float(nll.mean_G[idx]),
            "sd_nats": float(sd_G[idx]),
            "accuracy": float(accuracy_G[idx]),
        }
        for idx, group in enumerate(index.groups)
        if num_responses_G[idx]
    ]


def _accuracy(index: ResponseIndex, scores: CellScores) -> Floats:
    """Share of scored responses all of whose tokens are the arg max over the whole vocabulary."""
    correct_P, known_P = accuracy_totals(index, scores).T
    with np.errstate(invalid="ignore"):
        return index.group_sums(correct_P) / index.group_sums(known_P)


def accuracy_totals(index: ResponseIndex, scores: CellScores) -> Floats:
    """By participant the number of correct responses and of those of which it is known, [P, 2]."""
    known_R = scores.scored_R & (scores.argmax_R >= 0)
    return np.stack([index.sum_P(known_R & (scores.argmax_R > 0)), index.sum_P(known_R)], axis=1)


def baseline_totals(index: ResponseIndex, scores: CellScores, baseline_R: Floats) -> Floats:
    """By participant Σ model's NLL, Σ baseline's NLL and the number of the responses that both predict, [P, 3]."""
    joint_R = scores.scored_R & ~np.isnan(baseline_R)
    sums = [index.sum_P(np.where(joint_R, nll_R, 0.0)) for nll_R in (scores.nll_R, baseline_R)]
    return np.stack([*sums, index.sum_P(joint_R)], axis=1)


def baseline_rows(index: ResponseIndex, cell: Cell, baseline: str, totals_P3: Floats) -> list[Row]:
    """Rows of `model_baselines`: both sides over the responses that both predict."""
    model_G, baseline_G, num_G = (index.group_sums(column) for column in totals_P3.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        model_G, baseline_G = model_G / num_G, baseline_G / num_G
    return [
        {
            "model": cell.model,
            "condition": cell.condition,
            "baseline": baseline,
            "experiment": group,
            "num_responses": int(num_G[idx]),
            "nll_nats": float(model_G[idx]),
            "baseline_nats": float(baseline_G[idx]),
            "difference_nats": float(model_G[idx] - baseline_G[idx]),
            "beats": bool(model_G[idx] < baseline_G[idx]),
        }
        for idx, group in enumerate(index.groups)
        if num_G[idx]
    ]


def baseline_alone(index: ResponseIndex, baseline: str, baseline_R: Floats) -> list[Row]:
    """Rows of `baselines`: over every response that the baseline predicts."""
    found = group_moments(index, baseline_R, ~np.isnan(baseline_R))
    return [
        {"baseline": baseline, "experiment": group, "num_responses": int(num), "nll_nats": float(mean)}
        for group, num, mean in zip(index.groups, found.num_G, found.mean_G, strict=True)
        if num
    ]


CHOICE_FIGURES = ("guess_nats", "pseudo_r2", "normalised_nll_nats", "choice_accuracy", "brier", "ece")


def model_table(
    experiments: pl.DataFrame,
    choices: pl.DataFrame,
    baselines: pl.DataFrame,
    intervals: pl.DataFrame,
    results: Results,
    pairs: PairTable,
) -> pl.DataFrame:
    """Table `models`: the unweighted mean over experiments of their figures, each over those that have it."""
    means = experiments.group_by("model", "condition", maintain_order=True).agg(
        num_experiments=pl.col("nll_nats").count(),
        num_participants=pl.col("num_participants").sum(),
        num_responses=pl.col("num_responses").sum(),
        num_scored=pl.col("num_scored").sum(),
        nll_nats=pl.col("nll_nats").mean(),
        accuracy=pl.col("accuracy").mean(),
    )
    facts = pl.DataFrame(
        [_facts(cell, pairs) for cell in results.cells],
        schema=["model", "condition", "generation", "size_b", "type"],
        orient="row",
        infer_schema_length=None,
    )
    of_choices = choices.group_by("model", "condition").agg(
        pl.col(CHOICE_FIGURES).mean(),
        is_partial=pl.col("is_partial").any(),
        with_set=pl.col("num_responses").sum(),
        people_with_set=pl.col("num_participants").sum(),
    )
    markov = (
        baselines.filter(pl.col("baseline") == MARKOV)
        .group_by("model", "condition")
        .agg(above_markov_nats=pl.col("difference_nats").mean())
        .with_columns(beats_markov=pl.col("above_markov_nats") < 0)
    )
    joined = facts.join(means, on=["model", "condition"], how="inner", maintain_order="left")
    for more in (of_choices, markov, _limits(intervals, ABOVE_MARKOV, "above_markov_")):
        joined = joined.join(more, on=["model", "condition"], how="left", maintain_order="left")
    shares = joined.with_columns(
        share_of_responses=pl.col("with_set").fill_null(0) / pl.col("num_scored"),
        share_of_participants=pl.col("people_with_set").fill_null(0) / pl.col("num_participants"),
    )
    return table("models", shares)


ABOVE_MARKOV = "above_markov_nats"


def _limits(intervals: pl.DataFrame, quantity: str, prefix: str) -> pl.DataFrame:
    """The limits of a quantity's mean over experiments, with the studies random and (`_fixed`) fixed."""
    mine = intervals.filter(pl.col("quantity") == quantity, pl.col("experiment").is_null())
    of_cell = mine.rename({"model_a": "model", "condition_a": "condition"})
    return of_cell.group_by("model", "condition").agg(
        pl.col(limit).filter(estimand=estimand).first().alias(f"{prefix}{limit}{suffix}")
        for estimand, suffix in ((RANDOM, ""), (FIXED, "_fixed"))
        for limit in ("low", "high")
    )


def _facts(cell: Cell, pairs: PairTable) -> tuple[str, str, str | None, float | None, str | None]:
    model = pairs.find(cell.names)
    type_ = pairs.type_of(cell.names)
    return (*cell.key, model.generation if model else None, model.size_b if model else None, type_)


def accuracy_table(experiments: pl.DataFrame, condition: str) -> pl.DataFrame:
    """Table `accuracy`: of the condition that has one-character responses only."""
    return table("accuracy", experiments.filter(pl.col("condition") == condition))
