"""Means over pairs: their intervals against those of one pair, values that must follow, and simulations."""

import numpy as np
import polars as pl
import pytest

from psyfast.metrics.bootstrap import fixed_interval, random_interval, sample_study
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.joint_intervals import MeanOverPairs, joint_intervals
from psyfast.metrics.responses import ResponseIndex
from psyfast.metrics.statistics_of_totals import EFFECT

CONFIG = MetricsConfig(num_resamples=399)
GROUPS = ("r", "s", "t", "u")


def index_of(people_by_group):
    group_P = np.repeat(np.arange(len(people_by_group)), people_by_group)
    num = len(group_P)
    people = pl.DataFrame({"num_responses": np.full(num, 10)})
    return ResponseIndex(people, GROUPS[: len(people_by_group)], group_P, np.arange(num) * 10, 10 * num)


def totals_of(a, b):
    """[P, 6] of NLLs [P, n]."""
    num = np.full(len(a), float(a.shape[1]))
    return np.stack([a.sum(1), (a * a).sum(1), num, b.sum(1), (b * b).sum(1), num], axis=1)


def some_totals(rng, index, shift=0.3):
    own = rng.normal(0, 0.3, (len(index.group_P), 1)) + 0.2 * index.group_P[:, None]
    a = rng.gamma(2, 0.5, (len(own), 10)) + own
    return totals_of(a, a + own * shift + rng.normal(0.1, 0.3, a.shape))


@pytest.fixture
def index():
    return index_of([6, 9, 4, 12])


def test_one_pair_has_the_interval_that_it_has_by_itself(index):
    totals = some_totals(np.random.default_rng(0), index)
    alone = [sample_study(EFFECT, totals[m], g, 399, 0) for g, m in zip(GROUPS, index.members_G, strict=True)]
    ((fixed, random),) = joint_intervals(index, [totals], EFFECT, [MeanOverPairs((0,), (0, 1, 2, 3))], CONFIG)
    for found, expected in ((fixed, fixed_interval(alone, 0.95)), (random, random_interval(alone, 0.95, 0))):
        assert found.estimate == pytest.approx(expected.estimate, abs=1e-12)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
        assert (found.num_studies, found.num_participants) == (4, 31)


def test_the_same_pair_twice_says_no_more_than_once(index):
    totals = some_totals(np.random.default_rng(1), index)
    means = [MeanOverPairs((0,), (0, 1, 2, 3)), MeanOverPairs((0, 1, 2), (0, 1, 2, 3))]
    once, thrice = joint_intervals(index, [totals] * 3, EFFECT, means, CONFIG)
    for one, other in zip(once, thrice, strict=True):
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_effects_that_cancel_leave_nothing(index):
    totals = some_totals(np.random.default_rng(2), index)
    mirrored = totals[:, [3, 4, 5, 0, 1, 2]]
    ((fixed, random),) = joint_intervals(
        index, [totals, mirrored], EFFECT, [MeanOverPairs((0, 1), (0, 1, 2, 3))], CONFIG
    )
    assert abs(fixed.estimate) < 1e-12 and abs(random.estimate) < 1e-12
    assert fixed.se < 1e-9 and random.se < 1e-9


def test_pairs_of_other_studies_count_alike(index):
    rng = np.random.default_rng(3)
    one, other = some_totals(rng, index), some_totals(rng, index)
    other[index.group_P > 1] = 0  # the second pair has the first two studies only
    (fixed, random), *_ = joint_intervals(index, [one, other], EFFECT, [MeanOverPairs((0, 1), (0, 1, 2, 3))], CONFIG)
    d = [[float(EFFECT.value(t[m].sum(0))) for m in index.members_G[:num]] for t, num in ((one, 4), (other, 2))]
    expected = (np.mean(d[0]) + np.mean(d[1])) / 2
    assert fixed.estimate == pytest.approx(expected, abs=1e-12)
    assert random.estimate == pytest.approx(expected, abs=1e-12)
    assert fixed.low < expected < fixed.high and random.low < expected < random.high


def test_a_study_of_one_participant_enters_the_random_estimand_only():
    index = index_of([6, 1, 5])
    totals = some_totals(np.random.default_rng(4), index)
    ((fixed, random),) = joint_intervals(index, [totals], EFFECT, [MeanOverPairs((0,), (0, 1, 2))], CONFIG)
    assert (fixed.num_studies, random.num_studies) == (2, 3)


@pytest.mark.parametrize("pairs", [(), (0,)])
def test_nothing_to_average(pairs):
    index = index_of([3, 3])
    ((fixed, random),) = joint_intervals(index, [np.zeros((6, 6))], EFFECT, [MeanOverPairs(pairs, (0, 1))], CONFIG)
    assert np.isnan([fixed.estimate, fixed.low, random.estimate, random.low]).all()


@pytest.mark.slow
def test_means_over_pairs_cover():
    """Three pairs that share what is particular to a participant and to a study."""
    rng, index = np.random.default_rng(5), index_of([12] * 4)
    config = MetricsConfig(num_resamples=399)
    people = len(index.group_P)
    covered = np.zeros(2)
    truth = 0.4
    for _ in range(500):
        of_study = rng.normal(0, 0.2, 4)[index.group_P][:, None]
        of_person = rng.normal(0, 0.3, (people, 1))
        totals = []
        for _ in range(3):
            a = rng.normal(0, 1, (people, 10))
            b = rng.normal(0, 1, (people, 10)) + truth + of_study + of_person
            totals.append(totals_of(a, b))
        ((fixed, random),) = joint_intervals(index, totals, EFFECT, [MeanOverPairs((0, 1, 2), (0, 1, 2, 3))], config)
        scale = np.sqrt(1 + 0.3**2 / 2)  # participants differ in b, which widens its sd
        in_studies = (truth + np.mean(of_study[:: people // 4])) / scale
        covered += [fixed.low <= in_studies <= fixed.high, random.low <= truth / scale <= random.high]
    assert (covered / 500 >= 0.93).all(), covered / 500
