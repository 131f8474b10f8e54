"""Table `intervals`, and what follows from the same resamples: `equivalence`, and the tests by experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from psyfast.metrics.bootstrap import Interval, Job, StudySamples, fixed_interval, random_interval, sample_studies
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.equivalence import equivalence
from psyfast.metrics.responses import Floats, ResponseIndex
from psyfast.metrics.statistics_of_totals import Statistic

Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is resampled: statistics of participants' totals, [P, K]. A participant whose totals are all 0 has no response.

    names: model_a and the like. pooled_G: by a statistic's name, the variances that take every response as independent.
    left_out: groups.
    """

    names: Row
    totals_PK: Floats
    statistics: tuple[Statistic, ...]
    pooled_G: Mapping[str, Floats]
    left_out: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Resampled:
    """A statistic's samples by group, of groups where it has a value; pooled variances (NaN if unknown) beside them."""

    names: Row
    statistic: Statistic
    groups: tuple[str, ...]
    samples: tuple[StudySamples, ...]
    pooled: tuple[float, ...]


AT_ONCE = 12
"""Subjects whose samples are in memory together, some 10 MB each for 150 studies."""


def resample(index: ResponseIndex, subjects: Sequence[Subject], config: MetricsConfig) -> Iterator[list[Resampled]]:
    """Resample participants in each group, the same ones for all subjects: for each subject its statistics, in order."""
    for start in range(0, len(subjects), AT_ONCE):
        yield from _resample_block(index, subjects[start : start + AT_ONCE], config)


def _resample_block(index: ResponseIndex, block: Sequence[Subject], config: MetricsConfig) -> list[list[Resampled]]:
    samples: list[list[dict[int, StudySamples]]] = [[{} for _ in subject.statistics] for subject in block]
    for idx, members in enumerate(index.members_G):
        alike: dict[bytes, list[tuple[int, Job]]] = {}
        for number, subject in enumerate(block):
            totals_CK = subject.totals_PK[members]
            used = totals_CK.any(axis=1)
            if idx not in subject.left_out and used.any():
                alike.setdefault(used.tobytes(), []).append((number, (totals_CK[used], subject.statistics)))
        for jobs in alike.values():
            drawn = sample_studies([job for _, job in jobs], index.groups[idx], config.num_resamples, config.seed)
            for (number, _), of_subject in zip(jobs, drawn, strict=True):
                for of_statistic, found in zip(samples[number], of_subject, strict=True):
                    if np.isfinite(found.estimate):
                        of_statistic[idx] = found
    return [
        [
            _resampled(index, subject, statistic, of_statistic)
            for statistic, of_statistic in zip(subject.statistics, of_subject, strict=True)
        ]
        for subject, of_subject in zip(block, samples, strict=True)
    ]


def _resampled(
    index: ResponseIndex, subject: Subject, statistic: Statistic, samples: Mapping[int, StudySamples]
) -> Resampled:
    pooled_G = subject.pooled_G.get(statistic.name, np.full(len(index.groups), np.nan))
    return Resampled(
        subject.names,
        statistic,
        tuple(index.groups[idx] for idx in samples),
        tuple(samples.values()),
        tuple(float(pooled_G[idx]) for idx in samples),
    )


def overall(resampled: Resampled, config: MetricsConfig) -> tuple[Interval, Interval]:
    """The two estimands: studies fixed, studies random."""
    return (
        fixed_interval(resampled.samples, config.level),
        random_interval(resampled.samples, config.level, config.seed),
    )


def limits(studies: Sequence[StudySamples], config: MetricsConfig) -> Row:
    """Columns low, high (studies random) and low_fixed, high_fixed of the mean over these studies."""
    random, fixed = random_interval(studies, config.level, config.seed), fixed_interval(studies, config.level)
    return limits_of(random, fixed)


def limits_of(random: Interval, fixed: Interval) -> Row:
    """The same of two intervals."""
    return {"low": random.low, "high": random.high, "low_fixed": fixed.low, "high_fixed": fixed.high}


def interval_rows(resampled: Resampled, config: MetricsConfig, *, by_experiment: bool = True) -> list[Row]:
    """Rows of `intervals`: the mean over experiments under both estimands, then each experiment where asked for."""
    if not resampled.samples:
        return []
    z = NormalDist().inv_cdf(0.5 + config.level / 2)
    of_mean = float(np.sqrt(np.sum(resampled.pooled))) / len(resampled.pooled)
    rows = [_row(resampled, None, found, z * of_mean, config) for found in overall(resampled, config)]
    if not by_experiment:
        return rows
    for group, sample, pooled in zip(resampled.groups, resampled.samples, resampled.pooled, strict=True):
        rows.append(_row(resampled, group, fixed_interval([sample], config.level), z * float(np.sqrt(pooled)), config))
    return rows


def _row(resampled: Resampled, group: str | None, found: Interval, pooled: float, config: MetricsConfig) -> Row:
    centre = float(np.mean([s.estimate for s in resampled.samples])) if group is None else found.estimate
    return {
        **resampled.names,
        "quantity": resampled.statistic.name,
        "experiment": group,
        "estimand": found.estimand,
        "estimate": found.estimate,
        "se": found.se,
        "low": found.low,
        "high": found.high,
        "level": config.level,
        "pooled_low": centre - pooled,
        "pooled_high": centre + pooled,
        "num_experiments": found.num_studies,
        "num_participants": found.num_participants,
        "reason": found.reason,
    }


def equivalence_rows(resampled: Resampled, config: MetricsConfig) -> list[Row]:
    """Rows of `equivalence` for one contrast, one an estimand."""
    rows: list[Row] = []
    for found in overall(resampled, config) if resampled.samples else ():
        tested = equivalence(found, config.margin)
        rows.append(
            {
                **resampled.names,
                "estimand": found.estimand,
                "d": found.estimate,
                "margin": config.margin,
                "low_90": tested.low,
                "high_90": tested.high,
                "p_value": tested.p_value,
                "is_equivalent": tested.is_equivalent,
                "reason": found.reason,
            }
        )
    return rows
