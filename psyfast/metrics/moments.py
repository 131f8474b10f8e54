"""Sums that every effect size is made of, by group (experiment) and by participant.

Letters: R responses, P participants, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from psyfast.metrics.group_moments import GroupMoments, group_moments
from psyfast.metrics.responses import Bools, Floats, ResponseIndex
from psyfast.metrics.scores import CellScores
from psyfast.metrics.statistics_of_totals import DIFFERENCE, EFFECT


@dataclass(frozen=True, eq=False)
class ContrastMoments:
    """Two cells on the same responses.

    a, b: moments of the NLLs. totals_P6: by participant the sums of a, a², 1, b, b², 1 that d is made of, where a and b are
    taken from the mean of a in their group. paired_P3: Σa, Σb and the number of the responses that both scored.
    pooled_G: by statistic, the variance that takes every response as independent.
    """

    a: GroupMoments
    b: GroupMoments
    num_participants_G: Floats
    num_joint_G: Floats
    totals_P6: Floats
    paired_P3: Floats
    pooled_G: Mapping[str, Floats]


def contrast_moments(index: ResponseIndex, a: CellScores, b: CellScores, *, joint_only: bool) -> ContrastMoments:
    """Moments of two cells over the responses that both hold.

    joint_only: over those that both scored (RESULTS: paired figures); else each over its own, as the study does.
    """
    joint_R = a.scored_R & b.scored_R
    both_R = a.present_R & b.present_R
    used_R = (joint_R, joint_R) if joint_only else (both_R & a.scored_R, both_R & b.scored_R)
    of_a, of_b = (_moments_of(index, cell, used) for cell, used in zip((a, b), used_R, strict=True))
    centre_R = index.spread(np.nan_to_num(of_a.mean_G))
    values = [np.where(used, cell.nll_R - centre_R, 0.0) for cell, used in zip((a, b), used_R, strict=True)]
    totals_P6 = np.stack(
        [
            index.sum_P(column)
            for value, used in zip(values, used_R, strict=True)
            for column in (value, value * value, used)
        ],
        axis=1,
    )
    if joint_only:
        paired_P3 = totals_P6[:, [0, 3, 2]]
    else:
        paired = [np.where(joint_R, value, 0.0) for value in values]
        paired_P3 = np.stack([index.sum_P(column) for column in (*paired, joint_R)], axis=1)
    num_joint_P = paired_P3[:, 2]
    return ContrastMoments(
        of_a,
        of_b,
        index.group_sums(num_joint_P > 0),
        index.group_sums(num_joint_P),
        totals_P6,
        paired_P3,
        pooled_variances(index, (values[0], values[1]), used_R, totals_P6),
    )


def _moments_of(index: ResponseIndex, cell: CellScores, used_R: Bools) -> GroupMoments:
    """Moments of the used NLLs; those of all scored ones are computed once a cell."""
    if not np.array_equal(used_R, cell.scored_R):
        return group_moments(index, cell.nll_R, used_R)
    return cell.moments


def pooled_variances(
    index: ResponseIndex, values: tuple[Floats, Floats], used_R: tuple[Bools, Bools], totals_P6: Floats
) -> dict[str, Floats]:
    """Linearised variances of the paired statistics with every response a cluster of its own, by group."""
    totals_G6 = np.stack([index.group_sums(column) for column in totals_P6.T], axis=1)
    found: dict[str, Floats] = {}
    for statistic in (DIFFERENCE, EFFECT):
        with np.errstate(invalid="ignore", divide="ignore"):
            gradient_G6 = statistic.gradient(totals_G6)
        influence_R = np.zeros(index.num_responses)
        for side, (value_R, used) in enumerate(zip(values, used_R, strict=True)):
            linear_G, square_G, constant_G = gradient_G6[:, 3 * side : 3 * side + 3].T
            with np.errstate(invalid="ignore"):  # groups without a spread
                factor_R = index.spread(linear_G)
                if square_G.any():
                    factor_R += index.spread(square_G) * value_R
                factor_R *= value_R
                factor_R += index.spread(constant_G)
            influence_R += factor_R if used.all() else np.where(used, factor_R, 0.0)
        found[statistic.name] = index.sum_G(np.square(influence_R, out=influence_R))
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
