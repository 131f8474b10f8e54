"""Sign-flip permutation test on participants' paired differences, and Benjamini-Hochberg over experiments."""

from __future__ import annotations

import zlib

import numpy as np

from psyfast.metrics.responses import Floats

EXACT_UP_TO = 13
"""Participants up to which every one of the 2ⁿ sign patterns is taken."""
CHUNK = 4_000_000


def sign_flip_p(differences_C: Floats, study: str, num_flips: int, seed: int) -> float:
    """Two-sided p of mean difference 0, if each participant's difference were symmetric about 0.

    Statistic: mean over participants. NaN for no participant. Up to 13 participants all sign patterns are taken (exact), beyond
    that `num_flips` random ones and the data themselves, (1 + number as extreme) / (1 + num_flips) (Phipson & Smyth 2010).
    """
    return float(sign_flip_ps(differences_C[:, None], study, num_flips, seed)[0])


def sign_flip_ps(differences_CK: Floats, study: str, num_flips: int, seed: int) -> Floats:
    """`sign_flip_p` of K contrasts of the same participants, all in the same patterns of signs."""
    num, num_contrasts = differences_CK.shape
    if num == 0:
        return np.full(num_contrasts, np.nan)
    total_K = differences_CK.sum(axis=0)
    threshold_K = np.abs(total_K) * (1 - 1e-12)  # equal sums in another order are as extreme
    if num <= EXACT_UP_TO:
        patterns = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
        sums = (1 - 2 * patterns).astype(np.float64) @ differences_CK
        return np.asarray(np.mean(np.abs(sums) >= threshold_K, axis=0))
    rng = np.random.default_rng([seed, zlib.crc32(study.encode()), 1])
    extreme_K = np.zeros(num_contrasts)
    size = max(1, CHUNK // num)
    for start in range(0, num_flips, size):
        rows = min(size, num_flips - start)
        bits = np.unpackbits(np.frombuffer(rng.bytes((rows * num + 7) // 8), np.uint8), count=rows * num)
        sums = 2.0 * (bits.reshape(rows, num).astype(np.float64) @ differences_CK) - total_K
        extreme_K += np.sum(np.abs(sums) >= threshold_K, axis=0)
    return (1 + extreme_K) / (1 + num_flips)


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusted p values (q) of Benjamini & Hochberg 1995; NaN stays NaN and counts for nothing."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    num = len(order)
    raw = p_values[order] * num / np.arange(1, num + 1)
    adjusted[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return adjusted
