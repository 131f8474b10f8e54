"""A confidence sequence for the unweighted mean of studies' means: an interval that may be looked at after every participant.

Each study k of K is a finite population of N_k participants, drawn in random order without replacement; what is
estimated is (1/K) Σ_k mean over all N_k. After n_k of them the estimate E = (1/K) Σ_k x̄_k has the variance

    V = (1/K²) Σ_k s_k² / n_k · (1 − n_k / N_k)

Its errors at an earlier and a later time have the covariance V(later), so that error / V is Brownian motion in the time 1 / V
(the bridge that sampling without replacement is), and a normal mixture (Robbins 1970) bounds it at all times at once, with the
variances estimated: an asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, Time-uniform central limit
theory and asymptotic confidence sequences, Annals of Statistics 52, 2024). Two corrections for small samples: Student's t in the
place of the normal (Lai 1976; Wang & Ramdas, Anytime-valid t-tests, 2025) with the degrees of freedom of Satterthwaite 1946, and
the shift of a skewed mean (Johnson 1978), added to the half-width. Exhausted studies add no variance: with every
participant drawn, the interval is the point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from psyfast.errors import UsageError

Floats = NDArray[np.float64]

LEAST_A_STUDY = 3
"""Participants of every study before the first interval (all of a smaller study): a third moment takes three."""
LEAST_FREEDOM, LEAST_OPEN_FREEDOM = 40, 20
"""Σ (n_k − 1) over all studies, and over those that are not exhausted, below which there is no interval. All three numbers are
by simulation (docs/compare.md)."""

MOST_UNTIL = 1e6
GOALS = ((1, 3 / 4), (4, 1 / 12), (16, 1 / 12), (64, 1 / 12))
"""(factor, weight): what the interval is tuned to, in units of the goal, and its share of what may be missed. One that is tuned to a
half-width loses little at half or twice of it: three steps of 4 are enough, at the cost of 7 % more participants at the goal."""


@dataclass(frozen=True)
class Precision:
    """How well the mean is known. Arrays of one shape; zeros where nothing is left to draw.

    variance: V, in nats². freedom: degrees of freedom of its estimate. skewness: of the estimate, κ₃(E) / V^1.5.
    """

    variance: Floats
    freedom: Floats
    skewness: Floats


class AnytimeMean:
    """The mean over studies of their means, while participants come in one by one.

    sizes: participants of each study, that could be drawn. shape: of a difference; () for data, a number of simulations for
    simulations that draw in one order.
    """

    def __init__(self, sizes: Sequence[int], shape: tuple[int, ...] = ()) -> None:
        if not len(sizes) or min(sizes) < 0 or not any(sizes):
            raise UsageError(
                f"the studies have {list(sizes)} participants, expected a number of each, and one at least"
            )
        self.sizes = [int(size) for size in sizes]
        self.counts = [0] * len(sizes)
        self._mean, self._square, self._cube = (np.zeros((len(sizes), *shape)) for _ in range(3))
        # Of each study, times K², K⁴ and K³: the variance, its square over n − 1, the third cumulant of x̄_k.
        self._variance, self._spread, self._third = (np.zeros((len(sizes), *shape)) for _ in range(3))

    def add(self, study: int, difference: ArrayLike) -> None:
        """Take in a participant's mean difference in nats. UsageError where it is no finite number or one too many."""
        x = np.asarray(difference, np.float64)
        if not np.isfinite(x).all():
            raise UsageError(f"a participant's difference is {difference!r}, expected a finite number of nats")
        if self.counts[study] >= self.sizes[study]:
            raise UsageError(f"study {study} has {self.sizes[study]} participants and was given one more")
        self.counts[study] += 1
        n = self.counts[study]
        # Central moments, one value at a time (Pébay 2008).
        delta = x - self._mean[study]
        square = delta * delta * (n - 1) / n
        self._cube[study] += square * delta * (n - 2) / n - 3 * delta / n * self._square[study]
        self._square[study] += square
        self._mean[study] += delta / n
        self._update(study)

    def leave_out(self, study: int) -> None:
        """One participant fewer could be drawn: it has nothing to compare. UsageError where all were taken in."""
        if self.counts[study] >= self.sizes[study]:
            raise UsageError(f"study {study} has {self.sizes[study]} participants, and all of them were taken in")
        self.sizes[study] -= 1
        self._update(study)

    def _update(self, study: int) -> None:
        n, size = self.counts[study], self.sizes[study]
        if n == size or n < LEAST_A_STUDY:
            self._variance[study] = self._spread[study] = self._third[study] = 0.0
            return
        left = 1 - n / size
        self._variance[study] = self._square[study] / (n - 1) / n * left
        self._spread[study] = self._variance[study] ** 2 / (n - 1)
        self._third[study] = self._cube[study] * n / ((n - 1) * (n - 2)) / n**2 * left  # k-statistic of Fisher, over n²

    @property
    def means(self) -> Floats:
        """Of each study, those taken in; [studies, *shape]."""
        return self._mean

    @property
    def num_studies(self) -> int:
        """K: studies that have a participant."""
        return sum(size > 0 for size in self.sizes)

    @property
    def is_complete(self) -> bool:
        """Whether every participant was taken in."""
        return self.counts == self.sizes

    @property
    def has_interval(self) -> bool:
        """Whether enough participants were taken in for an interval."""
        return are_enough(self.counts, self.sizes)

    @property
    def estimate(self) -> Floats:
        """E: the mean over studies of the means of those taken in; NaN before every study has one."""
        if any(n == 0 < size for n, size in zip(self.counts, self.sizes, strict=True)):
            return np.full(self._mean.shape[1:], np.nan)
        return np.asarray(self._mean.sum(axis=0) / self.num_studies)

    @property
    def precision(self) -> Precision:
        """V, its degrees of freedom, and the estimate's skewness."""
        variance, spread = self._variance.sum(axis=0), self._spread.sum(axis=0)
        third, known = self._third.sum(axis=0), self._variance.sum(axis=0) > 0
        freedom = np.divide(variance**2, spread, out=np.zeros_like(variance), where=known)
        skewness = np.divide(third, variance**1.5, out=np.zeros_like(variance), where=known)
        return Precision(variance / self.num_studies**2, freedom, skewness)

    def half_width(self, until: float, level: float = 0.95) -> Floats:
        """Of the interval around `estimate`, tuned to be narrowest where it is about `until` nats. Infinite before
        `has_interval`, or where all differences so far are equal but others are left; 0 once all are there.
        """
        if self.is_complete:
            return np.zeros(self._mean.shape[1:])
        if not self.has_interval:
            return np.full(self._mean.shape[1:], np.inf)
        return half_width(self.precision, until, level)


def are_enough(counts: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether an interval can be had after so many participants of studies of these sizes."""
    are_open = [n for n, size in zip(counts, sizes, strict=True) if n < size]
    if not are_open:
        return True
    freedom, open_freedom = sum(n - 1 for n in counts if n), sum(n - 1 for n in are_open)
    return min(are_open) >= LEAST_A_STUDY and freedom >= LEAST_FREEDOM and open_freedom >= LEAST_OPEN_FREEDOM


def half_width(precision: Precision, until: float, level: float = 0.95) -> Floats:
    """Half-width in nats, at this moment, of a confidence sequence that is narrowest where it is about `until`.

    The least of several, tuned to the goals of GOALS · until, which share α = 1 − level by the weights that stand with them (a
    union bound): a difference far larger than `until` shows its sign long before the goal. Each, with its α, mixing
    variance ρ, R = 1 + ρ / V and q = (R / α²)^(1 / (ν + 1)):

        z² = ν (q − 1) / (1 − q / R)        → (1 + V / ρ) ln(R / α²) for ν → ∞
        half-width = √V (z + |γ| (1 + 2 z²) / 6)

    Infinite where V is 0 or q ≥ R. Raises UsageError for an `until` or a level that cannot be.
    """
    require_goal(until, level)
    variance, freedom = precision.variance, precision.freedom
    z_squared = np.full(np.shape(variance), np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for factor, weight in GOALS:
            log_alpha = math.log((1 - level) * weight)
            ratio = 1 + _mixing_variance(factor * until, log_alpha) / variance
            growth = np.expm1((np.log(ratio) - 2 * log_alpha) / (freedom + 1))  # q − 1
            found = freedom * growth / (1 - (1 + growth) / ratio)
            z_squared = np.where((1 + growth < ratio) & (variance > 0), np.minimum(z_squared, found), z_squared)
        width = np.sqrt(variance) * (np.sqrt(z_squared) + np.abs(precision.skewness) * (1 + 2 * z_squared) / 6)
    return np.where(np.isfinite(z_squared), width, np.inf)


def _mixing_variance(until: float, log_alpha: float) -> float:
    """ρ, such that (1 + y) ln((1 + 1/y) / α²), the squared bound over V at V = y ρ, is smallest where it gives `until`."""
    y = 0.1
    for _ in range(100):  # a contraction: its slope at the fixed point is y / (1 + y)
        y = 1 / (math.log1p(1 / y) - 2 * log_alpha)
    return until**2 / ((1 + y) * (math.log1p(1 / y) - 2 * log_alpha)) / y


def require_goal(until: float, level: float) -> None:
    """UsageError for a half-width that is not above 0 or beyond any NLL, or a level that is no share."""
    if not 0 < until <= MOST_UNTIL:
        raise UsageError(f"until is {until}, expected a half-width above 0 in nats a response, such as 0.02")
    if not 0 < level < 1:
        raise UsageError(f"level is {level}, expected a share between 0 and 1, such as 0.95")
