"""Table `intervals`, and what follows from the same resamples: `equivalence`, and the tests by experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from psyfast.metrics.bootstrap import Interval, StudySamples, fixed_interval, random_interval, sample_study
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.equivalence import equivalence
from psyfast.metrics.responses import Floats, ResponseIndex
from psyfast.metrics.statistics_of_totals import Statistic

Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Resampled:
    """A statistic's samples by group, of groups where it has a value; pooled variances beside them."""

    names: Row
    statistic: Statistic
    groups: tuple[str, ...]
    samples: tuple[StudySamples, ...]
    pooled: tuple[float, ...]


def resample(
    index: ResponseIndex,
    names: Row,
    statistic: Statistic,
    totals_PK: Floats,
    pooled_G: Floats,
    config: MetricsConfig,
    left_out: Sequence[int] = (),
) -> Resampled:
    """Resample participants in each group. totals_PK: last column the number of responses; pooled_G: variances that
    take every response as independent.
    """
    groups, samples, pooled = [], [], []
    for idx, group in enumerate(index.groups):
        mine = totals_PK[(index.group_P == idx) & (totals_PK[:, -1] > 0)]
        if idx in left_out or not len(mine):
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            found = sample_study(statistic, mine, group, config.num_resamples, config.seed)
        if np.isfinite(found.estimate):
            groups.append(group)
            samples.append(found)
            pooled.append(float(pooled_G[idx]))
    return Resampled(names, statistic, tuple(groups), tuple(samples), tuple(pooled))


def overall(resampled: Resampled, config: MetricsConfig) -> tuple[Interval, Interval]:
    """The two estimands: studies fixed, studies random."""
    return (
        fixed_interval(resampled.samples, config.level),
        random_interval(resampled.samples, config.level, config.seed),
    )


def interval_rows(resampled: Resampled, config: MetricsConfig) -> list[Row]:
    """Rows of `intervals`: the mean over experiments under both estimands, then each experiment."""
    if not resampled.samples:
        return []
    z = NormalDist().inv_cdf(0.5 + config.level / 2)
    of_mean = float(np.sqrt(np.sum(resampled.pooled))) / len(resampled.pooled)
    rows = [_row(resampled, None, found, z * of_mean, config) for found in overall(resampled, config)]
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
