"""Requests that meet every way in which sequences can lie beside, within and behind one another."""

from __future__ import annotations

import numpy as np

from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Branch, Request

BORDERS = [0, 1, PAGE_SLOTS - 1, PAGE_SLOTS, PAGE_SLOTS + 1, 2 * PAGE_SLOTS, 3 * PAGE_SLOTS - 1]


def random_requests(rng, num=30, vocab=4, longest=300):
    """Mixed at random: new sequences, continuations, prefixes, duplicates, empty ones; with branches everywhere."""
    requests = [random_request(rng, rng.integers(0, vocab, rng.integers(1, longest)), vocab)]
    for _ in range(num - 1):
        stem = requests[rng.integers(len(requests))].ids
        kind = rng.integers(6)
        if kind == 0:
            requests.append(requests[rng.integers(len(requests))])
            continue
        cut = len(stem) if kind == 1 else _place(rng, len(stem))
        tail = rng.integers(0, vocab, 0 if kind == 2 else rng.integers(0, 2 * PAGE_SLOTS))
        requests.append(random_request(rng, np.concatenate([stem[:cut], tail]), vocab))
    return requests


def random_request(rng, ids, vocab):
    """A request on these ids: any positions scored, none, or all; branches of any start and length."""
    num_scored = int(rng.choice([0, 1, 5, len(ids)]))
    scored = rng.integers(1, len(ids), num_scored) if len(ids) > 1 else np.zeros(0, np.int64)
    scored = np.unique(scored) if rng.integers(2) else scored  # also out of order, and one position twice
    branches = tuple(random_branch(rng, ids, vocab) for _ in range(rng.integers(0, 6)))
    dtype = rng.choice([np.int32, np.int64])
    return Request(ids.astype(dtype), scored, branches)


def random_branch(rng, ids, vocab):
    """Fork off anywhere, often at a page's border, at 0 or at the end; of no, one or more tokens, some the trunk's own."""
    start = _place(rng, len(ids))
    own = rng.integers(0, vocab + 1, rng.choice([0, 1, 2, 3, PAGE_SLOTS]))
    if rng.integers(3) == 0:
        own = np.concatenate([ids[start : start + rng.integers(0, 70)], own])
    stop = start + len(own)
    if stop < 1:
        start, own, stop = 0, rng.integers(0, vocab, 1), 1
    score_stop = stop if rng.integers(4) else int(rng.integers(1, stop + 1))
    score_start = int(rng.integers(max(1, score_stop - 3), score_stop + 1))
    return Branch(start, own, score_start, score_stop)


def _place(rng, length):
    """A cut of a sequence: at a page's border, at its beginning or end, or anywhere."""
    borders = [border for border in [*BORDERS, length - 1, length] if 0 <= border <= length]
    return int(rng.choice(borders)) if rng.integers(2) else int(rng.integers(0, length + 1))
