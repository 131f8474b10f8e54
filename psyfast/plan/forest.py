"""The prefix forest: every token that several sequences share is computed once.

A segment is a run of tokens that forks off its parent at an absolute position; roots fork off nothing at position 0.
A sequence that goes on after a segment's last token makes the segment longer; one that differs inside a segment forks
there. So a segment is never split, and a path that was handed out stays true:

    transcript 1   a b c d e f g          segment 0: a b c d e f g h i (root, start 0)
    transcript 2   a b c x y              segment 1:       x y         (parent 0, start 3)
    an option      a b c d q r            segment 2:         q r       (parent 0, start 4)
    transcript 3   a b c d e f g h i                                   (nothing of its own: segment 0 went on)

This is the readable form, and the oracle of the native one (csrc/forest.cc).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
TokenIds = NDArray[np.integer[Any]]
"""Token ids of a sequence, of the type that a tokenizer or a caller has them in."""
ROOT = -1


@dataclass(frozen=True)
class Segment:
    """Tokens `ids` at positions start, start + 1 … after the first `start` positions of `parent`'s path."""

    parent: int
    start: int
    ids: TokenIds

    @property
    def stop(self) -> int:
        """Position after the last token."""
        return self.start + len(self.ids)


@dataclass(frozen=True)
class Path:
    """Where a sequence's tokens lie: positions [stops[i − 1], stops[i]) are those of segment segments[i]."""

    segments: tuple[int, ...]
    stops: tuple[int, ...]

    def clipped(self, length: int) -> Path:
        """The path of the sequence's first `length` tokens."""
        kept = 0
        while kept < len(self.stops) and (kept == 0 or self.stops[kept - 1] < length):
            kept += 1
        stops = (*self.stops[: kept - 1], min(length, self.stops[kept - 1])) if length and kept else ()
        return Path(self.segments[: len(stops)], stops)


def common_prefix(a: TokenIds, b: TokenIds) -> int:
    """How many leading elements two arrays share."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


@dataclass
class Forest:
    """Grows by `add` and `branch`; with share=False every sequence gets tokens of its own (for comparison)."""

    share: bool = True
    segments: list[Segment] = field(default_factory=list)
    _forks: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def copy(self) -> Forest:
        """A forest that can grow without this one."""
        return Forest(self.share, list(self.segments), dict(self._forks))

    def add(self, ids: TokenIds) -> Path:
        """Add a whole sequence and return where its tokens lie."""
        return self._grow(ROOT, 0, ids, Path((), ()))

    def branch(self, trunk: Path, start: int, ids: TokenIds) -> Path:
        """Add the sequence made of the first `start` tokens of `trunk` and then `ids`, where sharing is on."""
        assert self.share, "an unshared branch is a sequence of its own: add it"
        stem = trunk.clipped(start)
        if not stem.segments:
            return self.add(ids)
        return self._grow(stem.segments[-1], start, ids, stem)

    def ids_of(self, path: Path) -> IntArray:
        """The tokens along a path."""
        parts, done = [], 0
        for segment_idx, stop in zip(path.segments, path.stops, strict=True):
            segment = self.segments[segment_idx]
            parts.append(segment.ids[done - segment.start : stop - segment.start])
            done = stop
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def batch_order(self) -> list[int]:
        """Segments as a batch holds them: each subtree in one piece, the parent first, then its forks by position.

        Forks of one position, and roots, stand in the order they were added.
        """
        forks_of: dict[int, list[int]] = defaultdict(list)
        for segment_idx in sorted(range(len(self.segments)), key=lambda i: self.segments[i].start):
            forks_of[self.segments[segment_idx].parent].append(segment_idx)
        order: list[int] = []
        pending = forks_of[ROOT][::-1]
        while pending:
            order.append(pending.pop())
            pending += forks_of[order[-1]][::-1]
        return order

    def _grow(self, segment_idx: int, position: int, ids: TokenIds, path: Path) -> Path:
        """Follow `ids` from a position of a segment as far as they are known, then lengthen the segment or fork."""
        segments, stops = list(path.segments), list(path.stops)

        def walked(segment_idx: int, stop: int) -> None:
            if segments and segments[-1] == segment_idx:
                stops[-1] = stop
            else:
                segments.append(segment_idx)
                stops.append(stop)

        while len(ids):
            if segment_idx != ROOT:
                segment = self.segments[segment_idx]
                shared = common_prefix(segment.ids[position - segment.start :], ids)
                position, ids = position + shared, ids[shared:]
                if shared:
                    walked(segment_idx, position)
                if len(ids) and position == segment.stop:
                    self.segments[segment_idx] = replace(segment, ids=np.concatenate([segment.ids, ids]))
                    walked(segment_idx, position + len(ids))
                    break
                if not len(ids):
                    break
            fork = (segment_idx, position, int(ids[0]))
            child = self._forks.get(fork) if self.share else None
            if child is None:
                child = len(self.segments)
                self._forks[fork] = child
                self.segments.append(Segment(segment_idx, position, ids))
                walked(child, position + len(ids))
                break
            segment_idx = child
        return Path(tuple(segments), tuple(stops))
