"""Where the seconds of a run go."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds by stage, each from the lap before."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def take(self) -> dict[str, float]:
        """The seconds so far; the sums begin anew."""
        taken, self._seconds = self._seconds, {}
        return taken

    def skip(self) -> None:
        """Leave out what went by since the last lap."""
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What went by since the last lap was this stage's."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now
