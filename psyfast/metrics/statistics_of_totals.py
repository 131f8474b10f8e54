"""Statistics of participants' totals, with gradients: what a cluster bootstrap resamples, and its standard errors.

A statistic f depends on totals T_K = Σ_i z_iK over participants and is not changed by a common factor, so Σ_i ∇f(T)·z_i = 0
and its linearised variance is n / (n − 1) · Σ_i (∇f(T)·z_i)² (the delta method for clusters: Wolter, Introduction to
Variance Estimation, 2007, chapter 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from psyfast.metrics.responses import Floats


@dataclass(frozen=True)
class Statistic:
    """value: totals [..., K] → [...]; gradient: totals [..., K] → [..., K]."""

    name: str
    value: Callable[[Floats], Floats]
    gradient: Callable[[Floats], Floats]


def _mean(totals: Floats) -> Floats:
    return np.asarray(totals[..., 0] / totals[..., 1])


def _mean_gradient(totals: Floats) -> Floats:
    total, num = totals[..., 0], totals[..., 1]
    return np.stack([1 / num, -total / num**2], axis=-1)


def _difference(totals: Floats) -> Floats:
    return np.asarray((totals[..., 2] - totals[..., 0]) / totals[..., 4])


def _difference_gradient(totals: Floats) -> Floats:
    num = totals[..., 4]
    zero = np.zeros_like(num)
    return np.stack([-1 / num, zero, 1 / num, zero, -_difference(totals) / num], axis=-1)


def _parts_of_d(totals: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """num, mean_a, mean_b, variance_a, variance_b (ddof = 0) and the pooled sd."""
    num = totals[..., 4]
    mean_a, mean_b = totals[..., 0] / num, totals[..., 2] / num
    variance_a = np.maximum(totals[..., 1] / num - mean_a**2, 0.0)
    variance_b = np.maximum(totals[..., 3] / num - mean_b**2, 0.0)
    return num, mean_a, mean_b, variance_a, variance_b, np.sqrt((variance_a + variance_b) / 2)


def _d(totals: Floats) -> Floats:
    num, mean_a, mean_b, _, _, spread = _parts_of_d(totals)
    return np.asarray((mean_b - mean_a) / spread * np.sqrt((num - 1) / num))  # to ddof = 1


def _d_gradient(totals: Floats) -> Floats:
    num, mean_a, mean_b, variance_a, variance_b, spread = _parts_of_d(totals)
    by_variance = -(mean_b - mean_a) / (4 * spread**3)  # ∂d/∂variance_a = ∂d/∂variance_b
    by_a = -1 / spread - 2 * mean_a * by_variance  # n · ∂d/∂Σa
    by_b = 1 / spread - 2 * mean_b * by_variance
    by_num = (mean_a - mean_b) / spread + by_variance * (mean_a**2 - variance_a + mean_b**2 - variance_b)
    return np.stack([by_a, by_variance, by_b, by_variance, by_num], axis=-1) / num[..., None]


MEAN = Statistic("nll_nats", _mean, _mean_gradient)
"""Σ NLL / n. Totals: Σ NLL, n."""

DIFFERENCE = Statistic("difference_nats", _difference, _difference_gradient)
"""mean_b − mean_a. Totals: Σa, Σa², Σb, Σb², n."""

EFFECT = Statistic("d", _d, _d_gradient)
"""Cohen's d of b against a, ddof = 1. Totals: Σa, Σa², Σb, Σb², n."""


def linearised_variance(statistic: Statistic, totals_CK: Floats) -> float:
    """Variance of a statistic of independent clusters' totals; NaN for fewer than 2 clusters."""
    num = len(totals_CK)
    if num < 2:
        return float("nan")
    influence_C = totals_CK @ statistic.gradient(totals_CK.sum(axis=0))
    return float(num / (num - 1) * np.dot(influence_C, influence_C))
