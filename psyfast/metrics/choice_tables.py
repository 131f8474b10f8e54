"""Tables `choices` and `reliability`: what a model makes of the choice sets, by experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psyfast.metrics.choices import Choices
from psyfast.metrics.responses import CellScores, Floats, ResponseIndex
from psyfast.metrics.results import Cell

Row = dict[str, object]
NUM_BINS = 15
ENOUGH = 0.95
"""Share of responses with a choice set below which a figure over options is marked (PROTOCOL 4)."""


def reliability(confidence_N: Floats, correct_N: Floats, num_bins: int = NUM_BINS) -> list[tuple[int, float, float]]:
    """(number, mean confidence, accuracy) of bins of equal mass by confidence; fewer bins for fewer responses."""
    order = np.argsort(confidence_N, kind="stable")
    parts = np.array_split(order, min(num_bins, max(1, len(order))))
    return [(len(p), float(confidence_N[p].mean()), float(correct_N[p].mean())) for p in parts if len(p)]


def expected_calibration_error(bins: Sequence[tuple[int, float, float]]) -> float:
    """Σ n_b / n · |accuracy_b − confidence_b| (top label, Guo et al. 2017; equal-mass bins, Nguyen & O'Connor 2015)."""
    total = sum(num for num, _, _ in bins)
    return sum(num * abs(right - sure) for num, sure, right in bins) / total if total else float("nan")


def choice_rows(
    index: ResponseIndex, cell: Cell, scores: CellScores, choices: Sequence[Choices]
) -> tuple[list[Row], list[Row]]:
    """Rows of `choices` and of `reliability` for a cell, over responses that are scored and have a set."""
    joined = [np.concatenate([getattr(c, name) for c in choices]) for name in _COLUMNS]
    rows_N = joined[0].astype(np.int64)
    used = scores.scored_R[rows_N]
    rows_N = rows_N[used]
    num_N, own_nll_N, confidence_N, correct_N, brier_N = (values[used] for values in joined[1:])
    guess_N, nll_N, group_N = np.log(num_N), scores.nll_R[rows_N], index.group_R[rows_N]
    scored_G = index.sum_G(scores.scored_R)
    with_set_P = np.bincount(index.participant_R[rows_N], minlength=index.num_participants)
    scored_P = index.sum_P(scores.scored_R)
    shares_G = index.group_sums(with_set_P > 0), index.group_sums(scored_P > 0)
    main: list[Row] = []
    curves: list[Row] = []
    order = np.argsort(group_N, kind="stable")
    borders = np.searchsorted(group_N[order], np.arange(len(index.groups) + 1))
    for idx, group in enumerate(index.groups):
        mine = order[borders[idx] : borders[idx + 1]]
        if not len(mine):
            continue
        bins = reliability(confidence_N[mine], correct_N[mine])
        names = {"model": cell.model, "condition": cell.condition, "experiment": group}
        share = len(mine) / scored_G[idx]
        main.append(
            {
                **names,
                "num_responses": len(mine),
                "num_participants": int(shares_G[0][idx]),
                "share_of_responses": share,
                "share_of_participants": shares_G[0][idx] / shares_G[1][idx],
                "is_partial": bool(share < ENOUGH),
                "guess_nats": float(guess_N[mine].mean()),
                "pseudo_r2": float(1 - nll_N[mine].sum() / guess_N[mine].sum()),
                "normalised_nll_nats": float(own_nll_N[mine].mean()),
                "choice_accuracy": float(correct_N[mine].mean()),
                "brier": float(brier_N[mine].mean()),
                "ece": expected_calibration_error(bins),
            }
        )
        curves += [
            {**names, "bin": bin_idx, "num_responses": num, "confidence": sure, "accuracy": right}
            for bin_idx, (num, sure, right) in enumerate(bins)
        ]
    return main, curves


_COLUMNS = ("rows_N", "num_N", "own_nll_N", "confidence_N", "correct_N", "brier_N")
