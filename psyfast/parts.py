"""The parts of a run: what is missing, and a window's rows and costs shared out over the conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from psyfast.data.rendering import LeftOut, Source
from psyfast.plan.records import Plan
from psyfast.plan.sharing import added_rows, added_tokens
from psyfast.plan.windows import Window
from psyfast.preparation import Work
from psyfast.rows import EntryScores, ScoredText, TranscriptScores, response_rows
from psyfast.store.run_folder import PartRecord

Row = dict[str, Any]


def gaps(finished: Sequence[PartRecord]) -> Iterator[tuple[int, int | None]]:
    """(first transcript, transcript after the last or None) of what the finished parts leave to do."""
    start = 0
    for record in finished:
        if record.transcript_start > start:
            yield start, record.transcript_start
        start = record.transcript_stop
    yield start, None


@dataclass(frozen=True)
class Missing:
    """Transcripts [start, stop) that are not scored yet under some conditions; stop: None for the end of the data."""

    start: int
    stop: int | None
    conditions: tuple[str, ...]


def missing_ranges(finished: Mapping[str, Sequence[PartRecord]]) -> list[Missing]:
    """What finished parts, by condition, leave to do, in order; conditions that lack the same are scored together.

    So a run that was killed between two conditions' parts of one window goes on with the windows it would have had.
    """
    todo = {name: list(gaps(records)) for name, records in finished.items()}
    borders = sorted({border for of_one in todo.values() for gap in of_one for border in gap if border is not None})
    ranges = []
    for start, stop in zip(borders, [*borders[1:], None], strict=True):
        names = tuple(name for name, of_one in todo.items() if any(_holds(gap, start) for gap in of_one))
        if names:
            ranges.append(Missing(start, stop, names))
    return ranges


def _holds(gap: tuple[int, int | None], start: int) -> bool:
    return gap[0] <= start and (gap[1] is None or start < gap[1])


class PartNumbers:
    """Numbers for new parts of a condition: the lowest that no finished part has."""

    def __init__(self, finished: Sequence[PartRecord]) -> None:
        taken = {record.part_idx for record in finished}
        self._free = (idx for idx in count() if idx not in taken)

    def take(self) -> int:
        """The next number."""
        return next(self._free)


def window_rows(
    works: Sequence[Work], plan: Plan, entries: EntryScores | None, num_conditions: int, *, per_token: bool
) -> list[list[Row]]:
    """Rows of the results by condition; entries: None where the window had nothing to compute."""
    rows: list[list[Row]] = [[] for _ in range(num_conditions)]
    placed = zip(plan.requests, plan.branches, strict=True)
    for work in works:
        source = Source(work.transcript)
        for of_condition, one in zip(rows, work.rendered, strict=True):
            if isinstance(one.rendering, LeftOut):
                continue
            texts = [
                ScoredText(encoded, request, TranscriptScores(entries, *next(placed)))
                for encoded, request in zip(one.encoded, one.requests, strict=True)
                if entries is not None
            ]
            of_condition += response_rows(source, one.rendering, texts, per_token=per_token)
    return rows


@dataclass(frozen=True)
class Cost:
    """What a condition adds to a window, and its share of the time."""

    num_unique_tokens: int
    num_scored_rows: int
    seconds: dict[str, float]


def window_costs(
    window: Window[Work], plan: Plan, num_conditions: int, seconds: Mapping[str, float], *, share: bool
) -> list[Cost]:
    """A window's cost by condition: each beyond what those before it need, the time by the tokens so counted."""
    condition_of = [
        condition_idx for work in window.items for condition_idx, one in enumerate(work.rendered) for _ in one.requests
    ]
    numbered = iter(condition_of)
    batches = [[(next(numbered), request) for request in batch] for batch in window.requests]
    if num_conditions == 1:
        tokens: Sequence[int] = (sum(len(batch.token_ids_T) for batch in plan.batches),)
    else:
        tokens = added_tokens(batches, num_conditions, share=share)
    rows = added_rows(plan, condition_of, num_conditions)
    total = sum(tokens)
    shares = [number / total if total else 1 / num_conditions for number in tokens]
    return [
        Cost(num_tokens, num_rows, {stage: part * value for stage, value in seconds.items()})
        for num_tokens, num_rows, part in zip(tokens, rows, shares, strict=True)
    ]


def part_record(
    part_idx: int, start: int, condition_idx: int, works: Sequence[Work], rows: Sequence[Row], cost: Cost
) -> PartRecord:
    """What a part says of itself."""
    flags: Counter[str] = Counter(flag for row in rows for flag in row["flags"])
    tokens_by_study: Counter[str] = Counter()
    for work in works:
        requests = work.rendered[condition_idx].requests
        tokens_by_study[work.transcript.study] += sum(request.num_tokens for request in requests)
    return PartRecord(
        part_idx=part_idx,
        transcript_start=start,
        transcript_stop=start + len(works),
        num_tokens=sum(tokens_by_study.values()),
        num_unique_tokens=cost.num_unique_tokens,
        num_scored_rows=cost.num_scored_rows,
        num_responses=len(rows),
        flags=dict(flags),
        tokens_by_study=dict(tokens_by_study),
        seconds=cost.seconds,
    )
