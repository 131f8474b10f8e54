"""What a comparison of two models is asked for and finds: records, and participants' differences out of a run's tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from psyfast.errors import RunError, UsageError
from psyfast.metrics.anytime import require_goal

Key = tuple[str, str, str]
KEY = ["study", "experiment", "participant"]


@dataclass(frozen=True)
class CompareGoal:
    """When a comparison may stop.

    until: half-width in nats a response that is narrow enough. level: of the interval, at all looks at once. stop_at_sign:
    also where the interval excludes 0. max_participants: score no more. every: participants scored at least between two
    looks (None: as many as there are studies, and 4 at least).
    """

    until: float
    level: float = 0.95
    stop_at_sign: bool = True
    max_participants: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        require_goal(self.until, self.level)
        for name in ("max_participants", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, expected 1 participant or more")


@dataclass(frozen=True)
class Look:
    """The interval at one look. half_width: None where too few were scored for one.

    num_scored: participants that both models have scored; num_compared: those of them with a response that both scored.
    """

    num_scored: int
    num_compared: int
    estimate: float | None
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) in nats; None where there is none."""
        if self.estimate is None or self.half_width is None:
            return None
        return self.estimate - self.half_width, self.estimate + self.half_width

    @property
    def sign(self) -> int:
        """1 or −1 where the interval excludes 0, else 0."""
        if self.interval is None:
            return 0
        return 1 if self.interval[0] > 0 else -1 if self.interval[1] < 0 else 0


@dataclass(frozen=True)
class StudyDifference:
    """A study's part: num_participants with a marked response, those scored and compared so far, and their mean difference."""

    study: str
    num_participants: int
    num_scored: int
    num_compared: int
    mean_nats: float | None


DECISIONS = {
    "precise": "the half-width is below the goal",
    "sign": "the interval excludes 0",
    "complete": "every participant was scored: the difference is known exactly",
    "limit": "as many participants were scored as were allowed",
}
"""Why a comparison stopped."""


@dataclass(frozen=True, repr=False)
class ModelComparison:
    """The difference post − base: unweighted mean over studies of the mean over participants of their mean paired difference,
    in nats a response; above 0 the second model predicts worse.

    decision: a key of DECISIONS. looks: in their order; the last is the result. num_participants: with a marked response;
    num_without_responses: the rest. share_of_text: characters scored, of those participants'. num_tokens: of both models'
    requests. seconds: of scoring.
    """

    base: str
    post: str
    goal: CompareGoal
    decision: str
    looks: tuple[Look, ...]
    studies: tuple[StudyDifference, ...]
    num_participants: int
    num_without_responses: int
    share_of_text: float
    num_tokens: int
    seconds: float
    folder: Path | None = None

    def __repr__(self) -> str:
        last = self.looks[-1]
        shown = "unknown" if last.estimate is None else f"{last.estimate:+.4f}"
        if last.half_width is not None:
            shown += f" ± {last.half_width:.4f}"
        used = f"{last.num_scored} of {self.num_participants} participants"
        return f"ModelComparison({self.post} − {self.base}: {shown} nats; {self.decision} after {used})"

    @property
    def estimate(self) -> float | None:
        """In nats a response; None where participants of a study are still to come."""
        return self.looks[-1].estimate

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high) in nats a response, which covers at all looks at once."""
        return self.looks[-1].interval

    @property
    def share_of_participants(self) -> float:
        """Scored, of all with a marked response."""
        return self.looks[-1].num_scored / self.num_participants

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the manifest has them."""
        document = asdict(self)
        del document["folder"]
        return document

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: Path | None = None) -> ModelComparison:
        """Out of a manifest. Raises RunError where it was edited."""
        try:
            return cls(
                **{
                    **values,
                    "goal": CompareGoal(**values["goal"]),
                    "looks": tuple(Look(**look) for look in values["looks"]),
                    "studies": tuple(StudyDifference(**study) for study in values["studies"]),
                    "folder": folder,
                }
            )
        except (TypeError, KeyError) as error:
            raise RunError(f"{folder}: its manifest's 'compare' cannot be read ({error}); was it edited?") from error


def paired_differences(base: Sequence[Path], post: Sequence[Path]) -> dict[Key, float]:
    """Mean over a participant's responses that both models scored of nll_post − nll_base, in nats.

    base, post: parts of each model's responses. Participants without such a response are not in the result.
    """
    columns = [*KEY, "response_idx", "nll_nats"]
    sides = [
        pl.concat([pl.read_parquet(path, columns=columns, hive_partitioning=False) for path in paths])
        for paths in (base, post)
    ]
    joined = sides[0].join(sides[1], on=[*KEY, "response_idx"], suffix="_post", maintain_order="left")
    scored = joined.drop_nulls(["nll_nats", "nll_nats_post"])
    difference = (pl.col("nll_nats_post") - pl.col("nll_nats")).alias("difference")
    rows = scored.select(*KEY, difference).group_by(KEY, maintain_order=True).agg(pl.col("difference").implode()).rows()
    return {
        (study, experiment, participant): math.fsum(values) / len(values)
        for study, experiment, participant, values in rows
    }
