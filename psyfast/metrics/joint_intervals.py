"""Intervals for means over pairs of models: pairs share participants and studies, so they are resampled together.

A mean over K pairs of their means over studies, (1/K) Σ_k (1/S_k) Σ_s d_ks, is no mean of independent pairs: a resample draws
participants (and, with the studies random, studies) once for all pairs. Letters: K pairs, S studies, B resamples,
C participants of a study. Standard errors are linearised: a participant's influence is summed over the pairs before it is
squared, and so is a study's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from psyfast.metrics.bootstrap import FIXED, RANDOM, Interval, participant_weights, pivoted, study_draws
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.responses import Bools, Floats, Ints, ResponseIndex
from psyfast.metrics.statistics_of_totals import Statistic


@dataclass(frozen=True)
class MeanOverPairs:
    """What is averaged: which pairs, each over which studies (groups; those without a d fall out)."""

    pairs: tuple[int, ...]
    groups: tuple[int, ...]


def joint_intervals(
    index: ResponseIndex,
    totals: Sequence[Floats],
    statistic: Statistic,
    means: Sequence[MeanOverPairs],
    config: MetricsConfig,
) -> list[tuple[Interval, Interval]]:
    """Of each mean the interval with the studies fixed and that with the studies random.

    totals: of each pair the participants' totals, [P, 6]. Studies of one participant enter only the second, as everywhere.
    """
    drawn = _Studies(index, totals, statistic, config)
    fixed = [_FixedMean(mean, drawn) for mean in means]
    for group in range(len(index.groups)):
        drawn.draw(group, [mean for mean in fixed if mean.weight_KG[:, group].any()])
    return [(of.interval(config.level), _random_interval(of.mean, drawn, config)) for of in fixed]


class _Studies:
    """Every pair's d by study, in the data (d_KG, NaN without one) and in each resample (d_KGB)."""

    def __init__(
        self, index: ResponseIndex, totals: Sequence[Floats], statistic: Statistic, config: MetricsConfig
    ) -> None:
        self.totals, self.statistic, self.config, self.index = totals, statistic, config, index
        sums_KG6 = np.stack([np.stack([index.group_sums(column) for column in t.T], axis=1) for t in totals])
        with np.errstate(invalid="ignore", divide="ignore"):
            self.d_KG = statistic.value(sums_KG6)
        self.d_KG = np.where(np.isfinite(self.d_KG), self.d_KG, np.nan)
        self.num_KG = np.stack([index.group_sums(np.asarray(t.any(axis=1))) for t in totals])
        self.num_people_G = np.zeros(len(index.groups), np.int64)
        self.d_KGB = np.full((*self.d_KG.shape, config.num_resamples), np.nan)

    def draw(self, group: int, means: Sequence[_FixedMean]) -> None:
        """Resample a study's participants for all pairs at once, and add to the means what it contributes."""
        pairs = np.flatnonzero(~np.isnan(self.d_KG[:, group]))
        if not len(pairs):
            return
        totals_CK6 = np.stack([self.totals[pair][self.index.members_G[group]] for pair in pairs.tolist()], axis=1)
        totals_CK6 = totals_CK6[totals_CK6.any(axis=(1, 2))]
        num = len(totals_CK6)
        self.num_people_G[group] = num
        if num < 2:
            self.d_KGB[pairs, group] = self.d_KG[pairs, group, None]
            return
        for mean in means:
            mean.add_data(group, totals_CK6, pairs, self.statistic)
        start = 0
        flat_CK = totals_CK6.reshape(num, -1)
        for weights_BC in participant_weights(
            num, self.config.num_resamples, self.config.seed, self.index.groups[group]
        ):
            sums_BK6 = (weights_BC @ flat_CK).reshape(len(weights_BC), len(pairs), 6)
            stop = start + len(weights_BC)
            with np.errstate(invalid="ignore", divide="ignore"):
                self.d_KGB[pairs, group, start:stop] = self.statistic.value(sums_BK6).T
                gradient_BK6 = self.statistic.gradient(sums_BK6)
            for mean in means:
                part = slice(start, stop)
                mean.add_resamples(group, part, weights_BC, (flat_CK, gradient_BK6, pairs), self.d_KGB[:, group, part])
            start = stop


class _FixedMean:
    """One mean with the studies fixed, added up study by study. weight_KG: of each d in the mean."""

    def __init__(self, mean: MeanOverPairs, drawn: _Studies) -> None:
        self.mean = mean
        shape = drawn.d_KG.shape
        used_KG = np.zeros(shape, bool)
        used_KG[np.ix_(mean.pairs, mean.groups)] = True
        used_KG &= ~np.isnan(drawn.d_KG) & (drawn.num_KG > 1)
        num_K = used_KG.sum(axis=1)
        num_pairs = max(1, int((num_K > 0).sum()))
        self.weight_KG = used_KG / np.maximum(num_K, 1)[:, None] / num_pairs
        self.estimate = float(np.nansum(self.weight_KG * np.nan_to_num(drawn.d_KG))) if used_KG.any() else float("nan")
        self.variance = 0.0
        self.num_people = 0
        self.estimates_B = np.zeros(drawn.config.num_resamples)
        self.variances_B = np.zeros(drawn.config.num_resamples)

    def add_data(self, group: int, totals_CK6: Floats, pairs: Ints, statistic: Statistic) -> None:
        """The study's share of the variance in the data."""
        mine = self.weight_KG[pairs, group]
        used = mine > 0
        gradient_K6 = statistic.gradient(totals_CK6[:, used].sum(axis=0))
        influence_C = np.einsum("ckj,kj->c", totals_CK6[:, used], gradient_K6 * mine[used, None])
        num = len(influence_C)
        self.variance += num / (num - 1) * float(influence_C @ influence_C)
        self.num_people += num

    def add_resamples(
        self, group: int, part: slice, weights_BC: Floats, of_pairs: tuple[Floats, Floats, Ints], d_KB: Floats
    ) -> None:
        """The study's share of estimates and variances in some resamples."""
        flat_CK, gradient_BK6, pairs = of_pairs
        mine = self.weight_KG[pairs, group]
        used = mine > 0
        columns = np.repeat(used, 6)
        with np.errstate(invalid="ignore", over="ignore"):
            weighted = (gradient_BK6[:, used] * mine[used, None]).reshape(len(weights_BC), -1)
            influence_BC = weighted @ flat_CK[:, columns].T
            np.square(influence_BC, out=influence_BC)
            num = influence_BC.shape[1]
            self.variances_B[part] += num / (num - 1) * np.einsum("bc,bc->b", weights_BC, influence_BC)
            self.estimates_B[part] += mine[used] @ d_KB[pairs[used]]

    def interval(self, level: float) -> Interval:
        """The mean over these experiments, participants resampled within each."""
        se = float(np.sqrt(self.variance)) if self.weight_KG.any() else float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            t_B = (self.estimates_B - self.estimate) / np.sqrt(self.variances_B)
        counts = int(self.weight_KG.any(axis=0).sum()), self.num_people
        return pivoted(FIXED, (self.estimate, se, t_B), level, counts, None)


def _random_interval(mean: MeanOverPairs, drawn: _Studies, config: MetricsConfig) -> Interval:
    """The mean over experiments like these: studies are resampled, and participants within each that is drawn."""
    pairs = np.array(mean.pairs, np.int64)
    groups = np.array(mean.groups, np.int64)
    has_KG = ~np.isnan(drawn.d_KG[np.ix_(pairs, groups)])
    groups = groups[has_KG.any(axis=0)]
    pairs = pairs[has_KG.any(axis=1)]
    num = len(groups)
    d_KS = drawn.d_KG[np.ix_(pairs, groups)]
    in_data = [(d[None], ~np.isnan(d)[None]) for d in d_KS]
    (estimate,), (se,) = _mean_and_se(in_data) if num else (np.full(1, np.nan), np.full(1, np.nan))
    if num < 2:
        nothing = np.full(config.num_resamples, np.nan)
        return pivoted(RANDOM, (float(estimate), float("nan"), nothing), config.level, (num, 0), None)
    study, resample = study_draws(num, config.num_resamples, config.seed)
    draws = (
        (drawn.d_KGB[pair, groups][study, resample], has[study])
        for pair, (_, (has,)) in zip(pairs, in_data, strict=True)
    )
    estimates_B, se_B = _mean_and_se(draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        t_B = (estimates_B - estimate) / se_B
    counts = num, int(drawn.num_people_G[groups].sum())
    return pivoted(RANDOM, (float(estimate), float(se), t_B), config.level, counts, None)


def _mean_and_se(of_pairs: Iterable[tuple[Floats, Bools]]) -> tuple[Floats, Floats]:
    """Mean over pairs of the mean over studies, [B], and its standard error; of each pair d and whether there is one, [B, S].

    A resample that drew none of a pair's studies is the mean over the other pairs.
    """
    total_B, num_pairs_B, influence_BS = np.zeros(1), np.zeros(1), np.zeros((1, 1))
    for d_BS, has_BS in of_pairs:
        num_B = has_BS.sum(axis=1)
        share_B = 1 / np.maximum(num_B, 1)
        mean_B = np.where(has_BS, d_BS, 0.0).sum(axis=1) * share_B
        with np.errstate(invalid="ignore"):  # a resample that has no spread has no finite d
            influence_BS = influence_BS + np.where(has_BS, d_BS - mean_B[:, None], 0.0) * share_B[:, None]
        total_B = total_B + mean_B
        num_pairs_B = num_pairs_B + (num_B > 0)
    num = influence_BS.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        squares_B = np.square(influence_BS).sum(axis=1) * num / (num - 1)
        return np.asarray(total_B / num_pairs_B), np.sqrt(squares_B) / num_pairs_B
