"""Statistics of participants' totals, with gradients: what a cluster bootstrap resamples, and its standard errors.

A statistic f depends on totals T_K = Σ_i z_iK over participants and is not changed by a common factor, so Σ_i ∇f(T)·z_i = 0
and its linearised variance is n / (n − 1) · Σ_i (∇f(T)·z_i)² (the delta method for clusters: Wolter, Introduction to
Variance Estimation, 2007, chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from psyfast.metrics.responses import Floats


@dataclass(frozen=True)
class Statistic:
    """value: totals [..., K] → [...]; gradient: totals [..., K] → [..., K]."""

    name: str
    value: Callable[[Floats], Floats]
    gradient: Callable[[Floats], Floats]


def _ratio(totals: Floats) -> Floats:
    return np.asarray(totals[..., 0] / totals[..., 1])


def _ratio_gradient(totals: Floats) -> Floats:
    total, num = totals[..., 0], totals[..., 1]
    return np.stack([1 / num, -total / num**2], axis=-1)


def ratio(name: str) -> Statistic:
    """Σx / Σy, such as a mean. Totals: Σx, Σy."""
    return Statistic(name, _ratio, _ratio_gradient)


def _difference(totals: Floats) -> Floats:
    return np.asarray(totals[..., 3] / totals[..., 5] - totals[..., 0] / totals[..., 2])


def _difference_gradient(totals: Floats) -> Floats:
    num_a, num_b = totals[..., 2], totals[..., 5]
    mean_a, mean_b, zero = totals[..., 0] / num_a, totals[..., 3] / num_b, np.zeros_like(num_a)
    return np.stack([-1 / num_a, zero, mean_a / num_a, 1 / num_b, zero, -mean_b / num_b], axis=-1)


def _mean_and_variance(totals: Floats) -> tuple[Floats, Floats, Floats]:
    """Number, mean and variance (ddof 0) of one side's Σx, Σx², n."""
    num = totals[..., 2]
    mean = totals[..., 0] / num
    return num, mean, np.maximum(totals[..., 1] / num - mean**2, 0.0)


def _effect(totals: Floats, ddof: int) -> Floats:
    num_a, mean_a, variance_a = _mean_and_variance(totals[..., :3])
    num_b, mean_b, variance_b = _mean_and_variance(totals[..., 3:])
    squares = variance_a * num_a / (num_a - ddof) + variance_b * num_b / (num_b - ddof)
    return np.asarray((mean_b - mean_a) / np.sqrt(squares / 2))


def _effect_gradient(totals: Floats) -> Floats:
    num_a, mean_a, variance_a = _mean_and_variance(totals[..., :3])
    num_b, mean_b, variance_b = _mean_and_variance(totals[..., 3:])
    spread = np.sqrt((variance_a + variance_b) / 2)
    by_variance = -(mean_b - mean_a) / (4 * spread**3)  # ∂d/∂variance_a = ∂d/∂variance_b
    of_a = [
        -1 / spread - 2 * mean_a * by_variance,
        by_variance,
        mean_a / spread + by_variance * (mean_a**2 - variance_a),
    ]
    of_b = [
        1 / spread - 2 * mean_b * by_variance,
        by_variance,
        -mean_b / spread + by_variance * (mean_b**2 - variance_b),
    ]
    return np.stack([*(part / num_a for part in of_a), *(part / num_b for part in of_b)], axis=-1)


MEAN = ratio("nll_nats")
"""Σ NLL / n. Totals: Σ NLL, n."""

DIFFERENCE = Statistic("difference_nats", _difference, _difference_gradient)
"""mean_b − mean_a. Totals: Σa, Σa², n_a, Σb, Σb², n_b."""

EFFECT = Statistic("d", partial(_effect, ddof=1), _effect_gradient)
"""Cohen's d of b against a, ddof = 1. Totals: Σa, Σa², n_a, Σb, Σb², n_b. The gradient is that of ddof = 0."""

EFFECT_DDOF_0 = Statistic("d", partial(_effect, ddof=0), _effect_gradient)
"""The same with ddof = 0."""


def linearised_variance(statistic: Statistic, totals_CK: Floats) -> float:
    """Variance of a statistic of independent clusters' totals; NaN for fewer than 2 clusters."""
    num = len(totals_CK)
    if num < 2:
        return float("nan")
    influence_C = totals_CK @ statistic.gradient(totals_CK.sum(axis=0))
    return float(num / (num - 1) * np.dot(influence_C, influence_C))
