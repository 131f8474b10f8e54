"""Bootstrap, equivalence and permutation against values worked out by hand, finite differences and simulations."""

import numpy as np
import pytest

from psyfast.metrics.bootstrap import FIXED, fixed_interval, random_interval, sample_study
from psyfast.metrics.equivalence import equivalence
from psyfast.metrics.permutation import benjamini_hochberg, sign_flip_p
from psyfast.metrics.statistics_of_totals import DIFFERENCE, EFFECT, MEAN, linearised_variance


def totals_of(a, b):
    """Totals of one participant with these NLLs."""
    return [a.sum(), (a * a).sum(), len(a), b.sum(), (b * b).sum(), len(b)]


@pytest.mark.parametrize(("statistic", "width"), [(MEAN, 2), (DIFFERENCE, 6), (EFFECT, 6)])
def test_gradients(statistic, width):
    rng = np.random.default_rng(0)
    a, b = rng.gamma(2, 1, 400), rng.gamma(2, 1.3, 400)
    totals = np.array(totals_of(a, b)) if width == 6 else np.array([a.sum(), 400.0])
    steps = np.eye(width) * totals * 1e-6
    slopes = [(statistic.value(totals + s) - statistic.value(totals - s)) / (2 * s.sum()) for s in steps]
    assert statistic.gradient(totals) == pytest.approx(np.array(slopes), rel=5e-3, abs=1e-9)


def test_d_of_totals_is_cohens_d():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert EFFECT.value(np.array(totals_of(a, b))) == pytest.approx(2 / np.sqrt(2.5), abs=1e-12)


def test_the_variance_of_a_mean_of_equal_clusters_is_that_of_their_means():
    means = np.array([1.0, 2.0, 4.0, 7.0])
    totals = np.stack([means * 5, np.full(4, 5.0)], axis=1)
    assert linearised_variance(MEAN, totals) == pytest.approx(means.var(ddof=1) / 4, abs=1e-12)


def test_seeded_and_the_same_weights_for_every_statistic():
    rng = np.random.default_rng(1)
    base = np.stack([rng.gamma(5, 2, 9), np.full(9, 6.0)], axis=1)
    one, again, other = (sample_study(MEAN, base, "s", 199, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.estimates_B, again.estimates_B)
    assert not np.array_equal(one.estimates_B, other.estimates_B)
    shifted = sample_study(MEAN, base + np.array([6.0, 0.0]), "s", 199, 3)  # one nat more in each response
    assert shifted.estimates_B == pytest.approx(one.estimates_B + 1)


def test_in_pieces_the_resamples_are_complete(monkeypatch):
    totals = np.stack([np.arange(1.0, 8.0), np.ones(7)], axis=1)
    monkeypatch.setattr("psyfast.metrics.bootstrap.CHUNK", 50)
    monkeypatch.setattr("psyfast.metrics.bootstrap.KEPT", 50)
    found = sample_study(MEAN, totals, "s", 101, 0)
    assert len(found.estimates_B) == len(found.variances_B) == 101
    assert found.estimates_B.std() == pytest.approx(np.sqrt(found.variance * 6 / 7), rel=0.25)


def test_one_participant_has_no_interval():
    study = sample_study(MEAN, np.array([[3.0, 2.0]]), "s", 99, 0)
    found = fixed_interval([study], 0.95)
    assert found.estimate == 1.5 and np.isnan(found.low) and "one participant" in found.reason
    assert np.isnan(random_interval([study], 0.95, 0).low)


def test_no_interval_where_nothing_varies_and_the_reason():
    same = sample_study(MEAN, np.tile([3.0, 2.0], (4, 1)), "s", 99, 0)
    found = fixed_interval([same], 0.95)
    assert found.se == 0 and np.isnan(found.low) and found.reason == "all 4 participants have the same value"


def test_one_participant_studies_are_left_out_of_the_fixed_interval():
    rng = np.random.default_rng(2)
    whole = [sample_study(MEAN, np.stack([rng.gamma(9, 1, 20), np.ones(20)], 1), str(i), 499, 0) for i in range(3)]
    single = sample_study(MEAN, np.array([[3.0, 2.0]]), "s", 499, 0)
    found = fixed_interval([*whole, single], 0.95)
    assert (found.estimand, found.num_studies, found.reason) == (FIXED, 3, "without 1 of one participant")
    assert found.low == fixed_interval(whole, 0.95).low


def test_equivalence_of_a_tiny_effect_and_of_a_large_one():
    rng = np.random.default_rng(3)
    for shift, expected in ((0.0, True), (0.5, False)):
        rows = []
        for _ in range(80):
            a = rng.normal(2, 1, 50)
            rows.append(totals_of(a, a + rng.normal(shift, 0.1, 50)))
        found = fixed_interval([sample_study(EFFECT, np.array(rows), "s", 999, 0)], 0.95)
        result = equivalence(found, 0.05)
        assert result.is_equivalent is expected
        assert (result.low > -0.05 and result.high < 0.05) is expected


def test_sign_flips_by_hand():
    # Of the 8 patterns of 1, 2, 4 only +++ and −−− reach |7|.
    assert sign_flip_p(np.array([1.0, 2.0, 4.0]), "s", 99, 0) == 2 / 8
    assert sign_flip_p(np.array([0.0, 0.0]), "s", 99, 0) == 1.0
    assert np.isnan(sign_flip_p(np.zeros(0), "s", 99, 0))


def test_random_sign_flips_agree_with_all_of_them(monkeypatch):
    differences = np.random.default_rng(4).normal(0.4, 1, 13)
    exact = sign_flip_p(differences, "s", 99, 0)
    monkeypatch.setattr("psyfast.metrics.permutation.EXACT_UP_TO", 1)
    assert sign_flip_p(differences, "s", 20_000, 0) == pytest.approx(exact, abs=0.012)


def test_benjamini_hochberg_by_hand():
    # Sorted .01 .02 .03 .5: · 4/rank = .04 .04 .04 .5.
    found = benjamini_hochberg(np.array([0.5, 0.01, np.nan, 0.03, 0.02]))
    assert found == pytest.approx([0.5, 0.04, np.nan, 0.04, 0.04], nan_ok=True)


@pytest.mark.parametrize(("df", "tabled"), [(1, 12.706), (2, 4.303), (4, 2.776), (8, 2.306)])
def test_few_participants_have_the_interval_of_students_t(df, tabled):
    values = np.arange(df + 1.0)
    found = fixed_interval([sample_study(MEAN, np.stack([values, np.ones(df + 1)], axis=1), "s", 1999, 0)], 0.95)
    half = tabled * values.std(ddof=1) / np.sqrt(df + 1)
    assert found.low == pytest.approx(values.mean() - half, abs=0.02 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02 * half)
