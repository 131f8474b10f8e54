"""Simulated participants with known means: intervals cover, and the pooled one is too narrow."""

import numpy as np
import pytest

from psyfast.metrics.bootstrap import fixed_interval, random_interval, sample_study
from psyfast.metrics.statistics_of_totals import MEAN

SIMULATIONS = 500


def study(rng, number, mean):
    """20 participants of 30 skewed responses around means of their own, which average to `mean`."""
    own = mean + rng.normal(0, 0.3, 20)
    nll = own[:, None] + rng.gamma(2.0, 0.3, (20, 30)) - 0.6
    return nll, sample_study(MEAN, np.stack([nll.sum(1), np.full(20, 30.0)], 1), str(number), 499, 0)


@pytest.mark.slow
def test_intervals_of_both_estimands_cover_and_the_pooled_one_does_not():
    rng = np.random.default_rng(0)
    covered = {"fixed": 0, "random": 0, "pooled": 0}
    wider = 0
    for _ in range(SIMULATIONS):
        means = 1.5 + rng.normal(0, 0.4, 12)
        drawn = [study(rng, number, mean) for number, mean in enumerate(means)]
        fixed = fixed_interval([samples for _, samples in drawn], 0.95)
        random = random_interval([samples for _, samples in drawn], 0.95, 0)
        half = 1.96 * np.sqrt(sum(nll.var(ddof=1) / nll.size for nll, _ in drawn)) / len(drawn)
        covered["fixed"] += fixed.low <= means.mean() <= fixed.high
        covered["random"] += random.low <= 1.5 <= random.high
        covered["pooled"] += abs(fixed.estimate - means.mean()) <= half
        wider += fixed.high - fixed.low > 2 * half
    shares = {name: count / SIMULATIONS for name, count in covered.items()}
    assert shares["fixed"] >= 0.93 and shares["random"] >= 0.93, shares
    assert shares["pooled"] < 0.9, shares
    assert wider == SIMULATIONS


def test_the_estimate_converges_to_the_true_nll():
    rng = np.random.default_rng(1)
    p = 0.3
    truth = -p * np.log(p) - (1 - p) * np.log(1 - p)
    errors = []
    for num in (20, 2_000, 200_000):
        nll = np.where(rng.random((num, 10)) < p, -np.log(p), -np.log(1 - p))
        totals = np.stack([nll.sum(1), np.full(num, 10.0)], 1)
        errors.append(abs(float(MEAN.value(totals.sum(0))) - truth))
    assert errors[2] < 0.001 and errors[1] < 0.02
