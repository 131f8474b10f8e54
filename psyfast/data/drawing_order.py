"""The order in which participants are drawn: study by study in turn, at random within each, none twice.

One participant of every study that has some left is a round. With equal standard deviations this is the order in which the variance
of an unweighted mean over studies falls fastest: each next participant comes from the study that has had the fewest. It depends on
names and a seed alone, never on a result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence


def drawing_order(sizes: Sequence[int]) -> Iterator[int]:
    """The study (its index) that each participant in turn is drawn from, for studies of these numbers of participants."""
    for round_idx in range(max(sizes, default=0)):
        yield from (study for study, size in enumerate(sizes) if size > round_idx)


def draw_rank(key: tuple[str, str, str], seed: int) -> bytes:
    """Where a participant (study, experiment, participant) stands among those of its study: ranks are drawn in their order.

    A hash (BLAKE2b) of seed and names, so that neither the order of the data nor who else takes part plays a role.
    """
    return hashlib.blake2b(json.dumps([seed, *key]).encode(), digest_size=16).digest()


def drawn(keys: Iterable[tuple[str, str, str]], seed: int) -> list[int]:
    """Indices of `keys` (study, experiment, participant) in the order in which they are drawn; studies take turns in the order in which they first occur."""
    by_study: dict[str, list[tuple[bytes, int]]] = {}
    for idx, key in enumerate(keys):
        by_study.setdefault(key[0], []).append((draw_rank(key, seed), idx))
    ranked = [iter(sorted(members)) for members in by_study.values()]
    return [next(ranked[study])[1] for study in drawing_order([len(members) for members in by_study.values()])]
