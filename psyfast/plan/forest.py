"""The prefix forest: every token that several sequences share is computed once.

A segment is a run of tokens that forks off its parent at an absolute position; roots fork off nothing at position 0.
A fork may lie anywhere inside the parent, so a segment is never split and a sequence's path never changes:

    transcript 1   a b c d e f g          segment 0: a b c d e f g     (root, start 0)
    transcript 2   a b c x y              segment 1:       x y         (parent 0, start 3)
    an option      a b c d q r            segment 2:         q r       (parent 0, start 4)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
ROOT = -1


@dataclass(frozen=True)
class Segment:
    """Tokens `ids` at positions start, start + 1 … after the first `start` positions of `parent`'s path."""

    parent: int
    start: int
    ids: IntArray

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


def common_prefix(a: IntArray, b: IntArray) -> int:
    """How many leading elements two arrays share."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


@dataclass
class Forest:
    """Grows by `add`; with share=False every sequence gets tokens of its own (for comparison)."""

    share: bool = True
    segments: list[Segment] = field(default_factory=list)
    _forks: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def add(self, ids: IntArray) -> Path:
        """Add a whole sequence and return where its tokens lie."""
        return self._grow(ROOT, 0, ids, Path((), ()))

    def branch(self, trunk: Path, start: int, ids: IntArray) -> Path:
        """Add the sequence made of the first `start` tokens of `trunk` and then `ids`."""
        if not self.share:
            return self.add(np.concatenate([self.ids_of(trunk)[:start], ids]))
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

    def _grow(self, segment_idx: int, position: int, ids: IntArray, path: Path) -> Path:
        """Follow `ids` from a position of a segment as far as they are known, then fork."""
        segments, stops = list(path.segments), list(path.stops)
        while len(ids):
            if segment_idx != ROOT:
                segment = self.segments[segment_idx]
                shared = common_prefix(segment.ids[position - segment.start :], ids) if self.share else 0
                position += shared
                ids = ids[shared:]
                if segments and segments[-1] == segment_idx:
                    stops[-1] = position
                elif shared:
                    segments.append(segment_idx)
                    stops.append(position)
                if not len(ids):
                    break
            fork = (segment_idx, position, int(ids[0]))
            child = self._forks.get(fork) if self.share else None
            if child is None:
                child = len(self.segments)
                self._forks[fork] = child
                self.segments.append(Segment(segment_idx, position, ids))
                segments.append(child)
                stops.append(position + len(ids))
                break
            segment_idx = child
        return Path(tuple(segments), tuple(stops))
