"""PROTOCOL 5 in plain NumPy and loops, written from the protocol alone: the oracle of --as-published."""

from __future__ import annotations

from collections import defaultdict

import numpy as np


def by_experiment(rows):
    """{study: NLLs of all its responses}, null ones left out."""
    found = defaultdict(list)
    for row in rows:
        if row["nll_nats"] is not None:
            found[row["study"]].append(row["nll_nats"])
    return {study: np.array(values) for study, values in found.items()}


def model_score(rows):
    return np.mean([values.mean() for values in by_experiment(rows).values()])


def accuracy(rows):
    found = defaultdict(list)
    for row in rows:
        if row["nll_nats"] is not None:
            found[row["study"]].append(bool(row["is_argmax"]))
    return {study: np.mean(values) for study, values in found.items()}


def cohens_d(a, b, ddof):
    spread = np.sqrt((np.std(a, ddof=ddof) ** 2 + np.std(b, ddof=ddof) ** 2) / 2)
    return (np.mean(b) - np.mean(a)) / spread


def effects(rows_a, rows_b, ddof, left_out=()):
    """{study: d} over the studies that both have."""
    a, b = by_experiment(rows_a), by_experiment(rows_b)
    return {study: cohens_d(a[study], b[study], ddof) for study in a if study in b and study not in left_out}


def mean_effect(rows_a, rows_b, ddof, left_out=()):
    return np.mean(list(effects(rows_a, rows_b, ddof, left_out).values()))


def mean_by_category(rows_a, rows_b, categories):
    """{category: mean d (ddof = 0) over its experiments}; categories: {study: category or None}."""
    found = defaultdict(list)
    for study, d in effects(rows_a, rows_b, 0).items():
        found[categories.get(study) or "no category"].append(d)
    return {category: np.mean(values) for category, values in found.items()}
