"""Equivalence: whether an effect is shown to be smaller than a margin (two one-sided tests, Schuirmann 1987)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psyfast.metrics.bootstrap import Interval, quantiles

ALPHA = 0.05


@dataclass(frozen=True)
class Equivalence:
    """p_value: the larger of the two tests' (of d ≤ −margin and of d ≥ margin); low, high: the 90 % interval.

    is_equivalent: p_value < 0.05, None where there is no interval.
    """

    p_value: float
    low: float
    high: float
    is_equivalent: bool | None


def equivalence(interval: Interval, margin: float) -> Equivalence:
    """Two one-sided tests at 5 % with the pivots of the bootstrap-t in the place of Student's t."""
    t_B = interval.t_B
    if not len(t_B) or not np.isfinite(interval.low) or interval.se <= 0:
        return Equivalence(np.nan, np.nan, np.nan, None)
    above = (interval.estimate + margin) / interval.se  # against d ≤ −margin
    below = (interval.estimate - margin) / interval.se  # against d ≥ margin
    p_above = (1 + np.sum(t_B >= above)) / (len(t_B) + 1)
    p_below = (1 + np.sum(t_B <= below)) / (len(t_B) + 1)
    p_value = float(max(p_above, p_below))
    high_t, low_t = quantiles(t_B, 1 - 2 * ALPHA)
    low, high = interval.estimate - low_t * interval.se, interval.estimate - high_t * interval.se
    return Equivalence(p_value, float(low), float(high), p_value < ALPHA)
