"""Cluster bootstrap-t: intervals for means over experiments whose responses lie in participants.

Letters: S studies (experiments of the tables), C participants of one, B resamples, K totals. Resamples are drawn once for
a study and seed, and used for every statistic, so that models and contrasts are resampled alike. Bootstrap-t (Efron 1981;
Davison & Hinkley, Bootstrap Methods and their Application, 1997, section 5.2): each resample's error is divided by its own
standard error, which corrects for few clusters where percentiles are too narrow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from psyfast.metrics.responses import Floats
from psyfast.metrics.statistics_of_totals import Statistic, linearised_variance

FIXED, RANDOM = "studies fixed", "studies random"
MIN_DF = 9
"""Degrees of freedom from which on the bootstrap is used. Of two participants every second resample draws one of them
twice and has no standard error, of ten one in a thousand million; between, pivots of a few hundred stand for nothing.
"""
CHUNK = 4_000_000
"""Resampled participants in memory at a time."""
KEPT = 1_000_000
"""Resampled participants up to which a study's draws are kept for the next statistic: 2 MB a study."""


@dataclass(frozen=True)
class StudySamples:
    """One study's statistic and its variance (NaN for one participant), in the data and in each resample."""

    estimate: float
    variance: float
    num_participants: int
    estimates_B: Floats
    variances_B: Floats


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; low and high are NaN where there is none, `reason` says why.

    t_B: the resampled pivots, (estimate* − estimate) / se*, sorted.
    """

    estimand: str
    estimate: float
    se: float
    low: float
    high: float
    num_studies: int
    num_participants: int
    reason: str | None
    t_B: Floats


def sample_study(statistic: Statistic, totals_CK: Floats, study: str, num_resamples: int, seed: int) -> StudySamples:
    """Resample a study's participants with replacement. totals_CK: of participants with at least one response."""
    return sample_studies([(totals_CK, (statistic,))], study, num_resamples, seed)[0][0]


Job = tuple[Floats, tuple[Statistic, ...]]
"""Totals of a study's participants, [C, K], and the statistics of them that are wanted."""


def sample_studies(jobs: Sequence[Job], study: str, num_resamples: int, seed: int) -> list[list[StudySamples]]:
    """Many statistics of the same participants of one study in the same resamples: one matrix product for all."""
    num = len(jobs[0][0])
    if num < 2:
        return [[_one_participant(s, totals_CK, num_resamples) for s in statistics] for totals_CK, statistics in jobs]
    columns = np.concatenate([_with_products(totals_CK) for totals_CK, _ in jobs], axis=1)
    pieces = participant_weights(num, num_resamples, seed, study)
    sums = np.concatenate([columns.T @ weights_BC.T for weights_BC in pieces], axis=1)
    found, start = [], 0
    for totals_CK, statistics in jobs:
        stop = start + _num_columns(totals_CK.shape[1])
        found.append([_samples(statistic, totals_CK, sums[start:stop]) for statistic in statistics])
        start = stop
    return found


def _num_columns(width: int) -> int:
    return width + width * (width + 1) // 2


def _with_products(totals_CK: Floats) -> Floats:
    """The totals, and every product of two of them: what a variance's sums are made of."""
    row, column = _two_of(totals_CK.shape[1])
    return np.concatenate([totals_CK, totals_CK[:, row] * totals_CK[:, column]], axis=1)


@lru_cache(maxsize=8)
def _two_of(width: int) -> tuple[list[int], list[int]]:
    row, column = np.triu_indices(width)
    return row.tolist(), column.tolist()


def _samples(statistic: Statistic, totals_CK: Floats, sums_LB: Floats) -> StudySamples:
    """A statistic and its variance of resampled sums of the totals and then of their products."""
    num, width = totals_CK.shape
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = float(statistic.value(totals_CK.sum(axis=0)))
        estimates_B = statistic.value(sums_LB[:width].T)
        gradient_KB = statistic.gradient(sums_LB[:width].T).T
        squares_B = np.zeros(sums_LB.shape[1])
        for products_B, row, column in zip(sums_LB[width:], *_two_of(width), strict=True):
            term_B = gradient_KB[row] * gradient_KB[column]
            term_B *= products_B if row == column else 2 * products_B
            squares_B += term_B
        variance = linearised_variance(statistic, totals_CK)
    return StudySamples(estimate, variance, num, estimates_B, np.maximum(squares_B, 0.0) * num / (num - 1))


def _one_participant(statistic: Statistic, totals_CK: Floats, num_resamples: int) -> StudySamples:
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = float(statistic.value(totals_CK.sum(axis=0)))
    same, nothing = np.full(num_resamples, estimate), np.full(num_resamples, np.nan)
    return StudySamples(estimate, float("nan"), len(totals_CK), same, nothing)


def participant_weights(num: int, num_resamples: int, seed: int, study: str) -> Iterator[Floats]:
    """How often each of a study's participants is drawn, in pieces of [resamples, C]: always the same for one seed."""
    crc = zlib.crc32(study.encode())
    if num * num_resamples <= KEPT:
        yield _kept_weights(num, num_resamples, seed, crc).astype(np.float64)
        return
    rng = np.random.default_rng([seed, crc])
    size = max(1, CHUNK // num)
    for start in range(0, num_resamples, size):
        yield _draw(rng, num, min(size, num_resamples - start))


@lru_cache(maxsize=160)
def _kept_weights(num: int, num_resamples: int, seed: int, study: int) -> NDArray[np.uint16]:
    return _draw(np.random.default_rng([seed, study]), num, num_resamples).astype(np.uint16)


def _draw(rng: np.random.Generator, num: int, num_resamples: int) -> Floats:
    """How often each participant is drawn, [B, C]."""
    drawn = rng.integers(0, num, (num_resamples, num)) + np.arange(num_resamples)[:, None] * num
    counts = np.bincount(drawn.ravel(), minlength=num_resamples * num)
    return counts.reshape(num_resamples, num).astype(np.float64)


def fixed_interval(studies: Sequence[StudySamples], level: float) -> Interval:
    """These experiments: the mean over studies, participants resampled within each.

    Studies of one participant say nothing of how participants differ: they are left out, and the reason says so.
    """
    usable = [study for study in studies if study.num_participants > 1]
    left_out = len(studies) - len(usable)
    if not usable:
        return _without(FIXED, studies, "every experiment has only one participant")
    estimate = float(np.mean([study.estimate for study in usable]))
    se = float(np.sqrt(sum(study.variance for study in usable))) / len(usable)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.mean([study.estimates_B for study in usable], axis=0) - estimate
        t_B = errors / (np.sqrt(np.sum([study.variances_B for study in usable], axis=0)) / len(usable))
    note = f"without {left_out} of one participant" if left_out else None
    return _interval(FIXED, usable, (estimate, se, t_B), level, note)


def random_interval(studies: Sequence[StudySamples], level: float, seed: int) -> Interval:
    """Experiments like these: studies are resampled, and participants within each that is drawn."""
    num = len(studies)
    if num < 2:
        return _without(RANDOM, studies, "one experiment, expected 2 or more")
    estimates = np.array([study.estimate for study in studies])
    samples_SB = np.stack([study.estimates_B for study in studies])
    values_BS = samples_SB[study_draws(num, samples_SB.shape[1], seed)]
    estimate, se = float(estimates.mean()), float(estimates.std(ddof=1) / np.sqrt(num))
    with np.errstate(invalid="ignore", divide="ignore"):
        t_B = (values_BS.mean(axis=1) - estimate) / (values_BS.std(axis=1, ddof=1) / np.sqrt(num))
    return _interval(RANDOM, studies, (estimate, se, t_B), level, None)


@lru_cache(maxsize=16)
def study_draws(num: int, num_resamples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each resample `num` studies, and for each of these which of its own resamples is taken, both [B, S]."""
    rng = np.random.default_rng([seed, num])
    return rng.integers(0, num, (num_resamples, num)), rng.integers(0, num_resamples, (num_resamples, num))


def _interval(
    estimand: str, studies: Sequence[StudySamples], figures: tuple[float, float, Floats], level: float, note: str | None
) -> Interval:
    num_participants = sum(study.num_participants for study in studies)
    return pivoted(estimand, figures, level, (len(studies), num_participants), note)


def pivoted(
    estimand: str,
    figures: tuple[float, float, Floats],
    level: float,
    counts: tuple[int, int],
    note: str | None,
) -> Interval:
    """The interval of an estimate, its standard error and its resampled pivots. counts: of studies and participants.

    With fewer than MIN_DF degrees of freedom the pivots are those of Student's t: too few things are drawn again and again.
    """
    estimate, se, t_B = figures
    num_studies, num_participants = counts
    df = num_studies - 1 if estimand == RANDOM else num_participants - num_studies
    if 0 < df < MIN_DF:
        t_B = student_pivots(df, len(t_B))
    # A resample that draws the same again and again has no standard error: its pivot is as extreme as can be.
    t_B = np.sort(np.where(np.isnan(t_B), np.inf, t_B))
    high_t, low_t = quantiles(t_B, level)
    low, high = estimate - low_t * se, estimate - high_t * se
    if se == 0 or not (np.isfinite(low) and np.isfinite(high) and np.isfinite(se)):
        what = f"{num_studies} experiments" if estimand == RANDOM else f"{num_participants} participants"
        note = f"all {what} have the same value" if se == 0 else f"too few for an interval: {what}"
        low = high = np.nan
    return Interval(estimand, estimate, se, low, high, num_studies, num_participants, note, t_B)


@lru_cache(maxsize=64)
def student_pivots(df: int, num: int) -> Floats:
    """Quantiles of Student's t at (b − ½) / num, ascending: with t = √df tan θ the density of θ is as cos^(df − 1) θ."""
    theta = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
    density = np.cos(theta) ** (df - 1) if df > 1 else np.ones_like(theta)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    levels = (np.arange(1, num + 1) - 0.5) / num
    return np.asarray(np.sqrt(df) * np.tan(np.interp(levels, below / below[-1], theta)))


def quantiles(t_B: Floats, level: float) -> tuple[float, float]:
    """Lower and upper quantile of sorted pivots, at rank (B + 1) · p (Davison & Hinkley, section 5.2)."""
    tail = (1 - level) / 2
    ranks: NDArray[np.int64] = np.clip(
        np.round((len(t_B) + 1) * np.array([tail, 1 - tail])).astype(np.int64) - 1, 0, len(t_B) - 1
    )
    return float(t_B[ranks[0]]), float(t_B[ranks[1]])


def _without(estimand: str, studies: Sequence[StudySamples], reason: str) -> Interval:
    estimate = float(np.mean([study.estimate for study in studies])) if studies else float("nan")
    num_participants = sum(study.num_participants for study in studies)
    nothing = np.zeros(0)
    return Interval(estimand, estimate, np.nan, np.nan, np.nan, len(studies), num_participants, reason, nothing)
