"""Sums that every score and effect size is made of, by group (experiment) and by participant.

Letters: R responses, P participants, G groups. Variances are sums of squared deviations from the group's own mean, so that
nothing is lost to cancellation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from psyfast.metrics.responses import Bools, CellScores, Floats, ResponseIndex
from psyfast.metrics.statistics_of_totals import DIFFERENCE, EFFECT


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """Count, mean and sum of squared deviations of some values by group; the mean is NaN where there are none."""

    num_G: Floats
    mean_G: Floats
    squares_G: Floats

    def sd_G(self, ddof: int) -> Floats:
        """Standard deviations; NaN where there are not more than `ddof` values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.sqrt(np.where(self.num_G > ddof, self.squares_G, np.nan) / (self.num_G - ddof))


def group_moments(index: ResponseIndex, values_R: Floats, used_R: Bools) -> GroupMoments:
    """Moments of the used values by group."""
    num_G = index.sum_G(used_R)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_G = index.sum_G(np.where(used_R, values_R, 0.0)) / num_G
        deviation_R = np.where(used_R, values_R - mean_G[index.group_R], 0.0)
    squares_G = index.sum_G(deviation_R * deviation_R)
    return GroupMoments(num_G, mean_G, np.where(_constant_G(index, values_R, used_R), 0.0, squares_G))


def _constant_G(index: ResponseIndex, values_R: Floats, used_R: Bools) -> Bools:
    """Groups whose values are all the same: their sd is 0, and not what rounding of the mean leaves."""
    low_G, high_G = np.full(len(index.groups), np.inf), np.full(len(index.groups), -np.inf)
    order = index.group_R[used_R]
    if len(order):
        borders = np.flatnonzero(np.diff(order, prepend=-1))
        used = values_R[used_R]
        np.minimum.at(low_G, order[borders], np.minimum.reduceat(used, borders))
        np.maximum.at(high_G, order[borders], np.maximum.reduceat(used, borders))
    return np.asarray(low_G == high_G)


@dataclass(frozen=True, eq=False)
class ContrastMoments:
    """Two cells on the same responses.

    a, b: moments of the NLLs. joint_R: responses that both scored. totals_P5: by participant, over the joint responses,
    the sums of a, a², b, b² and 1, where a and b are taken from their group's `centre_G`. pooled_G: by statistic, the variance
    that takes every response as independent.
    """

    a: GroupMoments
    b: GroupMoments
    num_participants_G: Floats
    num_joint_G: Floats
    centre_G: Floats
    totals_P5: Floats
    pooled_G: Mapping[str, Floats]


def contrast_moments(index: ResponseIndex, a: CellScores, b: CellScores, *, joint_only: bool) -> ContrastMoments:
    """Moments of two cells over the responses that both hold.

    joint_only: over those that both scored (RESULTS: paired figures); else each over its own, as the study does.
    """
    joint_R = a.scored_R & b.scored_R
    both_R = a.present_R & b.present_R
    of_a = group_moments(index, a.nll_R, joint_R if joint_only else both_R & a.scored_R)
    of_b = group_moments(index, b.nll_R, joint_R if joint_only else both_R & b.scored_R)
    centre_G = np.nan_to_num(of_a.mean_G)
    totals_P5 = paired_totals(index, a, b, joint_R, centre_G)
    num_joint_P = totals_P5[:, 4]
    return ContrastMoments(
        of_a,
        of_b,
        index.group_sums(num_joint_P > 0),
        index.group_sums(num_joint_P),
        centre_G,
        totals_P5,
        pooled_variances(index, a, b, joint_R, centre_G, totals_P5),
    )


def paired_totals(index: ResponseIndex, a: CellScores, b: CellScores, joint_R: Bools, centre_G: Floats) -> Floats:
    """By participant the sums of a, a², b, b², 1 over the joint responses. [P, 5]"""
    centre_R = centre_G[index.group_R]
    a_R = np.where(joint_R, a.nll_R - centre_R, 0.0)
    b_R = np.where(joint_R, b.nll_R - centre_R, 0.0)
    return np.stack([index.sum_P(values) for values in (a_R, a_R * a_R, b_R, b_R * b_R, joint_R)], axis=1)


def pooled_variances(
    index: ResponseIndex, a: CellScores, b: CellScores, joint_R: Bools, centre_G: Floats, totals_P5: Floats
) -> dict[str, Floats]:
    """Linearised variances of the paired statistics with every response a cluster of its own, by group."""
    totals_G5 = np.stack([index.group_sums(column) for column in totals_P5.T], axis=1)
    rows = np.flatnonzero(joint_R)
    group = index.group_R[rows]
    a_J, b_J = a.nll_R[rows] - centre_G[group], b.nll_R[rows] - centre_G[group]
    found: dict[str, Floats] = {}
    for statistic in (DIFFERENCE, EFFECT):
        with np.errstate(invalid="ignore", divide="ignore"):
            g = statistic.gradient(totals_G5)[group]
            influence = (g[:, 0] + g[:, 1] * a_J) * a_J + (g[:, 2] + g[:, 3] * b_J) * b_J + g[:, 4]
            found[statistic.name] = np.bincount(group, influence * influence, len(index.groups)).astype(np.float64)
    return found


def effect_sizes(moments: ContrastMoments, ddof: int) -> tuple[Floats, list[str | None]]:
    """Cohen's d by group, (mean_b − mean_a) / sqrt((sd_a² + sd_b²) / 2) (PROTOCOL 5), NaN with the reason beside it."""
    sd_a, sd_b = moments.a.sd_G(ddof), moments.b.sd_G(ddof)
    num_G = np.minimum(moments.a.num_G, moments.b.num_G)
    spread_G = np.sqrt((sd_a**2 + sd_b**2) / 2)
    has_d = (num_G >= 2) & (spread_G > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        d_G = np.where(has_d, (moments.b.mean_G - moments.a.mean_G) / spread_G, np.nan)
    return d_G, [_reason(int(num), float(spread)) for num, spread in zip(num_G, spread_G, strict=True)]


def _reason(num: int, spread: float) -> str | None:
    if num < 2:
        return f"{num} response{'' if num == 1 else 's'}, a standard deviation needs 2"
    return None if spread > 0 else "the standard deviation is 0"
