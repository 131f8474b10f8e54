"""The confidence sequence against values worked out by hand, and its coverage under continuous peeking."""

import math

import numpy as np
import pytest

from psyfast.data.drawing_order import drawing_order
from psyfast.errors import UsageError
from psyfast.metrics.anytime import AnytimeMean, Precision, half_width


def two_studies():
    """Three of six participants of one study, three of four of another."""
    mean = AnytimeMean([6, 4])
    for study, difference in [(0, 1.0), (1, 0.0), (0, 2.0), (1, 0.0), (0, 6.0), (1, 3.0)]:
        mean.add(study, difference)
    return mean


def test_values_worked_out_by_hand():
    """s² = 7 and 3, of n = 3 with 1/2 and 1/4 left: 7/3/2 = 7/6 and 3/3/4 = 1/4; third k-statistics 27 and 9."""
    mean = two_studies()
    precision = mean.precision
    assert mean.estimate == pytest.approx((3 + 1) / 2)
    assert precision.variance == pytest.approx((7 / 6 + 1 / 4) / 4)
    assert precision.freedom == pytest.approx((17 / 12) ** 2 / ((7 / 6) ** 2 / 2 + (1 / 4) ** 2 / 2))
    assert precision.skewness == pytest.approx((27 / 9 / 2 + 9 / 9 / 4) / (17 / 12) ** 1.5)


def test_moments_of_many_values_are_those_of_numpy():
    values = np.random.default_rng(0).gamma(1.0, 0.2, (50, 7)) + 30
    mean = AnytimeMean([80], (7,))
    for value in values:
        mean.add(0, value)
    left, deviations = 1 - 50 / 80, values - values.mean(0)
    k3 = 50 / (49 * 48) * (deviations**3).sum(0)
    assert mean.estimate == pytest.approx(values.mean(0), abs=1e-13)
    assert mean.precision.variance == pytest.approx(values.var(0, ddof=1) / 50 * left, rel=1e-9)
    assert mean.precision.freedom == pytest.approx(np.full(7, 49.0))
    expected = k3 / 50**2 * left / (values.var(0, ddof=1) / 50 * left) ** 1.5
    assert mean.precision.skewness == pytest.approx(expected, rel=1e-9)


def known(variance, freedom=1e12, skewness=0.0):
    return Precision(np.array(variance), np.array(freedom), np.array(skewness))


def test_with_a_known_variance_it_is_the_normal_mixture_and_as_narrow_as_it_gets_at_the_goal():
    until, alpha = 0.02, 0.05 * 3 / 4
    shares = np.geomspace(1e-3, 10, 100_001)  # y = V / ρ
    squares = (1 + shares) * np.log((1 + 1 / shares) / alpha**2)
    best = squares.argmin()
    mixing = until**2 / squares[best] / shares[best]
    near = shares < 4 * shares[best]  # further off, another goal takes over
    assert half_width(known(shares[near] * mixing), until) ** 2 == pytest.approx(
        (squares * shares)[near] * mixing, rel=1e-4
    )
    assert half_width(known(shares[best] * mixing), until) == pytest.approx(until, rel=1e-6)


def test_far_from_the_goal_it_stays_within_half_as_much_again_of_what_is_best_there():
    """3.14 standard errors at the goal, 3.83 at best for the goals of weight 1/12; up to a hundred times the goal."""
    variances = np.geomspace(1e-6, 0.1, 200)
    ratio = half_width(known(variances), 0.02) / np.sqrt(variances)
    assert ratio.min() == pytest.approx(3.14, abs=0.02)
    assert ratio[variances < 0.09].max() < 4.5


def test_few_degrees_of_freedom_and_skew_widen_it():
    plain = half_width(known(1e-4), 0.02)
    assert half_width(known(1e-4, freedom=40.0), 0.02) > 1.05 * plain
    z_squared = plain**2 / 1e-4
    shift = math.sqrt(1e-4) * 0.3 * (1 + 2 * z_squared) / 6
    assert half_width(known(1e-4, skewness=-0.3), 0.02) == pytest.approx(plain + shift)
    assert half_width(known(1e-4, freedom=0.1), 0.02) == math.inf


def test_before_enough_were_drawn_there_is_no_interval_and_at_the_end_it_is_the_point():
    rng = np.random.default_rng(1)
    mean = AnytimeMean([60])
    values = rng.normal(0.1, 1, 60)
    for num, value in enumerate(values, start=1):
        mean.add(0, value)
        assert mean.has_interval == (num >= 41)
        assert math.isfinite(mean.half_width(0.5)) == (num >= 41)
    assert mean.half_width(0.5) == 0 and mean.estimate == pytest.approx(values.mean())


def test_every_open_study_needs_three_and_small_ones_are_drawn_out():
    mean = AnytimeMean([2, 60, 60, 40])
    for study in [0, 0, *[3] * 40, *[1] * 18, 2, 2]:
        mean.add(study, float(mean.counts[study] % 3))
    assert not mean.has_interval  # two of study 2
    mean.add(2, 0.5)
    assert not mean.has_interval  # 17 + 2 of 20 degrees of freedom in what is open
    mean.add(1, 0.5)
    assert mean.has_interval and 0 < mean.half_width(0.5) < math.inf


def test_who_has_nothing_to_compare_is_no_part_of_the_population():
    """Left out one by one, the interval is that of the smaller studies; a study without anybody is none."""
    mean, smaller = AnytimeMean([50, 52, 2]), AnytimeMean([50, 50])
    rng = np.random.default_rng(2)
    for study, value in [(study, rng.normal()) for study in [0, 1] * 30]:
        mean.add(study, value)
        smaller.add(study, value)
    assert math.isnan(mean.estimate) and not mean.has_interval
    for study in (1, 2, 2, 1):
        mean.leave_out(study)
    assert mean.num_studies == 2 and mean.estimate == smaller.estimate
    assert mean.half_width(0.1) == smaller.half_width(0.1)
    with pytest.raises(UsageError, match="all of them were taken in"):
        mean.leave_out(2)


def test_equal_differences_say_nothing_of_their_spread():
    mean = AnytimeMean([100])
    for _ in range(60):
        mean.add(0, 0.25)
    assert mean.half_width(0.02) == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, math.nan]])
def test_no_number_is_refused(value):
    with pytest.raises(UsageError, match="expected a finite number of nats"):
        AnytimeMean([3], np.shape(value)).add(0, value)


@pytest.mark.parametrize("sizes", [[], [0, 0], [3, -1]])
def test_studies_that_cannot_be(sizes):
    with pytest.raises(UsageError, match="expected a number of each"):
        AnytimeMean(sizes)


def test_one_participant_too_many():
    mean = AnytimeMean([1])
    mean.add(0, 0.0)
    with pytest.raises(UsageError, match="was given one more"):
        mean.add(0, 0.0)


@pytest.mark.parametrize(
    ("until", "level"), [(0.0, 0.95), (-1.0, 0.95), (math.inf, 0.95), (1e200, 0.95), (0.1, 1.0), (0.1, 0.0)]
)
def test_goals_that_cannot_be(until, level):
    with pytest.raises(UsageError, match="expected"):
        half_width(known(1e-4), until, level)


def test_errors_at_two_times_have_the_covariance_that_the_method_rests_on():
    """Cov(E_s, E_t) = V_t for s < t, under sampling without replacement in turns."""
    rng = np.random.default_rng(3)
    populations = [rng.gamma(1.0, scale, size) for size, scale in ((12, 1.0), (30, 0.3))]
    errors, num = [], 20_000
    drawn = [rng.permuted(np.tile(values, (num, 1)), axis=1) for values in populations]
    for counts in ((4, 4), (8, 9)):
        means = [values[:, :n].mean(1) - values.mean(1) for values, n in zip(drawn, counts, strict=True)]
        errors.append(np.mean(means, axis=0))
    left = zip(populations, (8, 9), strict=True)
    expected = sum(values.var(ddof=1) / n * (1 - n / len(values)) for values, n in left) / 4
    assert np.cov(errors)[0, 1] == pytest.approx(expected, rel=0.05)
    assert np.var(errors[1]) == pytest.approx(expected, rel=0.05)


SIMULATIONS = 500


def ever_missed(sizes, draw, until, seed):
    """Shares of simulations whose interval, looked at after every participant, ever missed: ours, a fixed-sample one."""
    rng = np.random.default_rng(seed)
    populations = [draw(rng, (size, SIMULATIONS)) for size in sizes]
    truth = np.mean([values.mean(0) for values in populations], axis=0)
    missed, missed_fixed = np.zeros(SIMULATIONS, bool), np.zeros(SIMULATIONS, bool)
    mean = AnytimeMean(sizes, (SIMULATIONS,))
    for study in drawing_order(sizes):
        mean.add(study, populations[study][mean.counts[study]])
        if mean.has_interval and not mean.is_complete:
            error = np.abs(mean.estimate - truth)
            missed |= error > mean.half_width(until)
            missed_fixed |= error > 1.96 * np.sqrt(mean.precision.variance)
    assert mean.is_complete
    assert np.abs(mean.estimate - truth).max() < 1e-12
    return missed.mean(), missed_fixed.mean()


@pytest.mark.parametrize("sizes", [[100], [20] * 5, [5, 30, 60, 100], [20] * 30], ids=str)
@pytest.mark.parametrize("name", ["normal", "t3"])
def test_it_covers_at_all_times_at_once_and_a_fixed_sample_interval_does_not(sizes, name):
    draws = {"normal": np.random.Generator.standard_normal, "t3": lambda rng, shape: rng.standard_t(3, shape)}
    missed, missed_fixed = ever_missed(sizes, draws[name], 1 / math.sqrt(len(sizes)), seed=4)
    assert missed <= 0.06, missed
    assert missed_fixed > 0.15, missed_fixed
