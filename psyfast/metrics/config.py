"""What `psyfast metrics` is asked to compute: frozen, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from psyfast.errors import UsageError
from psyfast.study import LEFT_OUT

LEFT_OUT_OF_PERSONA = ("evangelidis2023upscaling", "gunadi2021deferral")
"""Studies that the published persona figure leaves out besides (PROTOCOL 5)."""


@dataclass(frozen=True)
class MetricsConfig:
    """Choices of a computation.

    group_by: the column of participants.parquet that makes an 'experiment'. as_published: the study's own choices where
    ours differ (docs/metrics.md). baseline, categories, pairs: files of the user. level: of intervals. margin: of the
    equivalence test, in units of d. num_resamples: of the bootstrap; num_flips: of the permutation test.
    min_participants: that must have met an item for it to have a distribution of human responses.
    """

    group_by: str = "study"
    as_published: bool = False
    baseline: Path | None = None
    categories: Path | None = None
    pairs: Path | None = None
    level: float = 0.95
    margin: float = 0.05
    num_resamples: int = 1999
    num_flips: int = 9999
    min_participants: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UsageError(f"level is {self.level}, expected a share between 0 and 1, such as 0.95")
        if not 0 < self.margin < float("inf"):
            raise UsageError(f"margin is {self.margin}, expected a size above 0 in units of d, such as 0.05")
        for name, least in (("num_resamples", 99), ("num_flips", 99), ("min_participants", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}, expected {least} or more")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}, expected 0 or more")

    @property
    def left_out(self) -> tuple[str, ...]:
        """Studies that enter no figure."""
        return LEFT_OUT if self.as_published else ()

    @property
    def left_out_of_persona(self) -> tuple[str, ...]:
        """Studies that enter no persona figure besides."""
        return LEFT_OUT_OF_PERSONA if self.as_published else ()
