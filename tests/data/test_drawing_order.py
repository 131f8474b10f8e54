"""The order of drawing: a permutation, seeded, stratified, balanced in every prefix, blind to the order of the data."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from psyfast.data.drawing_order import draw_rank, drawing_order, drawn

KEYS = [(study, "e", str(i)) for study, size in (("a", 7), ("b", 2), ("c", 30)) for i in range(size)]


def test_studies_take_turns_and_small_ones_run_out():
    assert list(drawing_order([3, 1, 2])) == [0, 1, 2, 0, 2, 0]
    assert list(drawing_order([])) == [] and list(drawing_order([0, 2])) == [1, 1]


def test_every_participant_once():
    assert sorted(drawn(KEYS, 0)) == list(range(len(KEYS)))


def test_every_prefix_is_balanced():
    sizes = Counter(key[0] for key in KEYS)
    counts = Counter()
    for idx in drawn(KEYS, 5):
        counts[KEYS[idx][0]] += 1
        most = max(counts.values())
        assert all(counts[study] >= min(size, most - 1) for study, size in sizes.items())


def test_the_seed_decides_and_nothing_else():
    assert drawn(KEYS, 1) == drawn(KEYS, 1) != drawn(KEYS, 2)
    backwards = KEYS[::-1]
    by_study = [[keys[i] for i in drawn(keys, 1) if keys[i][0] == "c"] for keys in (KEYS, backwards)]
    assert by_study[0] == by_study[1]
    fewer = [key for key in KEYS if key[2] != "3"]
    assert [fewer[i] for i in drawn(fewer, 1) if fewer[i][0] == "c"] == [k for k in by_study[0] if k[2] != "3"]


def test_each_order_within_a_study_is_as_likely():
    orders = Counter(tuple(sorted("xyz", key=lambda name: draw_rank(("s", "e", name), seed))) for seed in range(3000))
    assert set(orders) == set(permutations("xyz"))
    assert np.array(list(orders.values())) == pytest.approx(500, abs=90)  # four standard deviations


def test_studies_are_drawn_apart():
    """Participants of one name stand at places of their own in every study."""
    places = [
        [key[2] for key in [keys[i] for i in drawn(keys, 0)]]
        for keys in ([(s, "e", str(i)) for i in range(20)] for s in "ab")
    ]
    assert places[0] != places[1]
