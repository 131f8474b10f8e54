"""Tables `choices` and `reliability`: what a model makes of the choice sets, by experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psyfast.metrics.choices import Choices
from psyfast.metrics.responses import Bools, Floats, Ints, ResponseIndex
from psyfast.metrics.results import Cell
from psyfast.metrics.scores import CellScores

Row = dict[str, object]
NUM_BINS = 15
ENOUGH = 0.95
"""Share of responses with a choice set below which a figure over options is marked (PROTOCOL 4)."""


def reliability(
    confidence_N: Floats, correct_N: Floats | Bools, num_bins: int = NUM_BINS
) -> list[tuple[int, float, float]]:
    """(number, mean confidence, accuracy) of bins of equal mass by confidence; fewer bins for fewer responses."""
    order = np.argsort(confidence_N, kind="stable")
    parts = np.array_split(order, min(num_bins, max(1, len(order))))
    return [(len(p), float(confidence_N[p].mean()), float(correct_N[p].mean())) for p in parts if len(p)]


def expected_calibration_error(bins: Sequence[tuple[int, float, float]]) -> float:
    """Σ n_b / n · |accuracy_b − confidence_b| (top label, Guo et al. 2017; equal-mass bins, Nguyen & O'Connor 2015)."""
    total = sum(num for num, _, _ in bins)
    return sum(num * abs(right - sure) for num, sure, right in bins) / total if total else float("nan")


CHOICE_ACCURACY, PSEUDO_R2 = "choice_accuracy", "pseudo_r2"


@dataclass(frozen=True, eq=False)
class ChoiceFigures:
    """Rows of `choices` and of `reliability` for a cell, and the totals of two ratios by participant, [P, 2]."""

    rows: list[Row]
    curves: list[Row]
    totals: Mapping[str, Floats]


def choice_figures(index: ResponseIndex, cell: Cell, scores: CellScores, choices: Sequence[Choices]) -> ChoiceFigures:
    """What a cell makes of its choice sets, over responses that are scored and have one."""
    joined = [np.concatenate([getattr(c, name) for c in choices]) for name in _COLUMNS]
    used = scores.scored_R[joined[0]]
    rows_N, num_N, *of_sets = joined if used.all() else [values[used] for values in joined]
    guess_N, nll_N, participant_N = np.log(num_N), scores.nll_R[rows_N], index.participant_R[rows_N]
    correct_N = of_sets[2]

    def sum_P(values: Floats | Bools | None) -> Floats:
        return np.bincount(participant_N, values, index.num_participants).astype(np.float64, copy=False)

    num_P, guess_P, correct_P = sum_P(None), sum_P(guess_N), sum_P(correct_N)
    scored_P = index.sum_P(scores.scored_R)
    main: list[Row] = []
    curves: list[Row] = []
    shares = index.group_sums(num_P) / np.maximum(index.group_sums(scored_P), 1)
    num_people, num_scoring = index.group_sums(num_P > 0), index.group_sums(scored_P > 0)
    for idx, mine in _by_group(index.group_R[rows_N], len(index.groups)):
        bins = reliability(of_sets[1][mine], correct_N[mine])
        names: Row = {"model": cell.model, "condition": cell.condition, "experiment": index.groups[idx]}
        guess, own_nll, brier = guess_N[mine], of_sets[0][mine], of_sets[3][mine]
        main.append(
            {
                **names,
                "num_responses": len(mine),
                "num_participants": int(num_people[idx]),
                "share_of_responses": float(shares[idx]),
                "share_of_participants": float(num_people[idx] / num_scoring[idx]),
                "is_partial": bool(shares[idx] < ENOUGH),
                "guess_nats": float(guess.mean()),
                "pseudo_r2": float(1 - nll_N[mine].sum() / guess.sum()),
                "normalised_nll_nats": float(own_nll.mean()),
                "choice_accuracy": float(correct_N[mine].mean()),
                "brier": float(brier.mean()),
                "ece": expected_calibration_error(bins),
            }
        )
        curves += [
            {**names, "bin": bin_idx, "num_responses": num, "confidence": sure, "accuracy": right}
            for bin_idx, (num, sure, right) in enumerate(bins)
        ]
    totals = {
        CHOICE_ACCURACY: np.stack([correct_P, num_P], axis=1),
        PSEUDO_R2: np.stack([guess_P - sum_P(nll_N), guess_P], axis=1),
    }
    return ChoiceFigures(main, curves, totals)


_COLUMNS = ("rows_N", "num_N", "own_nll_N", "confidence_N", "correct_N", "brier_N")


def _by_group(group_N: Ints, num_groups: int) -> Iterator[tuple[int, Ints]]:
    """Each group that has any, with its places in order."""
    short = group_N.astype(np.int16) if num_groups < 2**15 else group_N  # 16 bits are sorted in one pass
    order = np.argsort(short, kind="stable")
    borders = np.concatenate([[0], np.cumsum(np.bincount(group_N, minlength=num_groups))])
    for idx in range(num_groups):
        if borders[idx] < borders[idx + 1]:
            yield idx, order[borders[idx] : borders[idx + 1]]
