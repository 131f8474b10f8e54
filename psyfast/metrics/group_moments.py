"""Count, mean and spread of some values by group ('experiment' of the tables).

Letters: R responses, G groups. Variances are sums of squared deviations from the group's own mean, so that nothing is lost
to cancellation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psyfast.metrics.responses import Bools, Floats, ResponseIndex


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
        deviation_R = np.where(used_R, values_R - index.spread(mean_G), 0.0)
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
