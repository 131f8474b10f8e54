"""Two models over the participants of a drawing, batch by batch, until their difference is known well enough.

Both models are loaded at once: the first may take half of the memory that the process has not taken yet, the second what the
first leaves. After each batch, a look: participants' differences enter a confidence sequence (psyfast.metrics.anytime), in the order of
the drawing, and the comparison stops where its goal is reached.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from psyfast.config import ScoreConfig
from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.data.drawing_order import drawing_order
from psyfast.data.drawn_transcripts import DrawnTranscripts, FirstDrawn
from psyfast.data.records import Transcript
from psyfast.data.transcripts import TranscriptReader, transcripts_from_rows
from psyfast.errors import DataError, RunError, UsageError
from psyfast.inputs import Inputs
from psyfast.metrics.anytime import AnytimeMean, are_enough
from psyfast.metrics.comparison import (
    CompareGoal,
    Key,
    Look,
    ModelComparison,
    StudyDifference,
    paired_differences,
)
from psyfast.model.load.model import open_model
from psyfast.model_run import ModelRun, Spent
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators, resolve
from psyfast.parts import Missing, PartNumbers, gaps
from psyfast.process_memory import TOKENIZER_BYTES, default_limit, planned_memory, resident_bytes
from psyfast.report.progress import Meter, OnProgress
from psyfast.rows import DIGEST_BYTES, transcript_digest
from psyfast.scan import Scan, scan_transcripts
from psyfast.scoring import chat_template_of, close_manifest, distinct, share_of_peak, started_manifest, threads
from psyfast.store.manifest import require_same, require_same_renderings
from psyfast.store.run_folder import PartRecord, RunFolder

LEAST_A_BATCH = 4
"""Participants between two looks, where there are fewer studies: a batch of a single one leaves the machine half idle."""

OnLook = Callable[[Look, int], None]
"""Called after each look with it and the number of participants in all."""


def compare_run(
    inputs: Inputs,
    goal: CompareGoal,
    *,
    on_progress: OnProgress | None = None,
    on_look: OnLook | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ModelComparison:
    """Score participants under both models, the second against the first, until the goal is reached, into the run's folder.

    should_stop: asked after every part; where it says yes, `RunInterruptedError` is raised, and a resumed comparison goes
    on from there. Raises a PsyfastError for whatever a user can mend.
    """
    config = inputs.config
    if len(inputs.located) != 2:
        raise UsageError(
            f"{len(inputs.located)} models were named, expected two: the base model and the one held against it"
        )
    if len(inputs.renderer.names) != 1:
        raise UsageError(
            f"the conditions are {', '.join(inputs.renderer.names)}, expected one to compare the models under"
        )
    operators = resolve(
        config.backend, config.device, Lane(config.lane), isa=config.isa, join_segments=config.join_segments
    )
    with threads(config.threads):
        _require_memory(inputs, operators)
        with inputs.run.locked():
            if inputs.old is None:
                inputs.run.require_empty()
            else:
                inputs = replace(inputs, old=_old_manifest(inputs.run))
            return _compare_locked(inputs, goal, operators, on_progress, on_look, should_stop)


def _old_manifest(run: RunFolder) -> dict[str, Any]:
    manifest = run.read_manifest()
    if "compare" not in manifest:
        raise RunError(f"{run.path}: holds a run of psyfast score, not of psyfast compare; give -o another folder")
    return manifest


def _limit(config: ScoreConfig) -> int:
    limit = config.memory_limit_bytes()
    return default_limit() if limit is None else limit


def _half(config: ScoreConfig) -> ScoreConfig:
    """With half of what the process has not taken."""
    taken = resident_bytes()
    return replace(config, memory_limit=max(1, taken + (_limit(config) - taken) // 2))


def _require_memory(inputs: Inputs, operators: Operators) -> None:
    """Configuration, headers and memory of both models, before a folder is made or a row is read."""
    half = _half(inputs.config)
    for place in inputs.located:
        try:
            planned_memory(half, operators, *open_model(place), still_to_load=2 * TOKENIZER_BYTES)
        except UsageError as error:
            raise UsageError(f"two models at once, each with half of the memory that is left: {error}") from error


@dataclass
class _Side:
    """One of the two models. records: its finished parts, in the order of what they cover; numbers: of new ones."""

    model_run: ModelRun
    condition: str
    records: list[PartRecord]
    numbers: PartNumbers
    meter: Meter

    @property
    def model_id(self) -> str:
        return self.model_run.located.model_id

    def parts_of(self, start: int, stop: int) -> list[PartRecord]:
        """Those that hold any transcript of these places."""
        return [record for record in self.records if record.transcript_start < stop and record.transcript_stop > start]


def _compare_locked(
    inputs: Inputs,
    goal: CompareGoal,
    operators: Operators,
    on_progress: OnProgress | None,
    on_look: OnLook | None,
    should_stop: Callable[[], bool] | None,
) -> ModelComparison:
    config, run = inputs.config, inputs.run
    started = time.perf_counter()
    inputs = replace(inputs, renderer=inputs.renderer.with_pools(inputs.reader))
    needed = inputs.renderer.needs_template
    templates = [chat_template_of(place) if needed else None for place in inputs.located]
    scan = scan_transcripts(inputs.reader, inputs.renderer, distinct(templates), run, write=False)
    base, post = (place.model_id for place in inputs.located)
    manifest = started_manifest(config, operators, scan, inputs.old)
    manifest["compare"] = {"base": base, "post": post, "seed": config.seed, "goal": asdict(goal)}
    if inputs.old is not None:
        require_same(inputs.old, manifest, f"{run.path}: cannot resume")
        require_same_renderings(inputs.old, scan.conditions(), f"{run.path}: cannot resume")
    with ExitStack() as stack:
        drawn = stack.enter_context(DrawnTranscripts(_checked(inputs.reader, scan), run.path, config.seed))
        manifest["seconds"]["scan"] += time.perf_counter() - started
        _require_some(drawn)
        run.write_manifest(manifest)
        sides = _open_both(inputs, operators, scan, drawn, manifest, templates, on_progress, stack)
        run.write_manifest(manifest)
        comparison = _Comparison(goal, drawn, sides, on_look, should_stop).run()
        _write_tables(inputs, drawn.first(comparison.looks[-1].num_scored), templates)
    manifest["compare"] = {**comparison.to_dict(), "seed": config.seed}
    spent = Spent()
    for side in sides:
        spent = spent.plus(side.model_run.spent.required, side.model_run.spent.seconds)
    manifest["peak"].update(share_of_peak(spent, manifest["peak"]["gflop_per_s"], operators))
    close_manifest(manifest, run, comparison.looks[-1].num_scored)
    run.write_manifest(manifest)
    return replace(comparison, folder=run.path)


def _write_tables(inputs: Inputs, scored: FirstDrawn, templates: Sequence[ChatTemplate | None]) -> None:
    """The tables of participants and transcripts: of those that were scored."""
    for path in (inputs.run.participants_path, inputs.run.transcripts_path):
        path.unlink(missing_ok=True)
    scan_transcripts(transcripts_from_rows(scored, "<drawn>"), inputs.renderer, distinct(templates), inputs.run)


def _checked(reader: TranscriptReader, scan: Scan) -> Iterator[Transcript]:
    """The transcripts, each held against the digest that the first pass over the data took of it."""
    start = 0
    for transcript in reader:
        if transcript_digest(transcript) != scan.digests[start : start + DIGEST_BYTES]:
            where = f"{transcript.source_file}, row {transcript.source_row}"
            raise DataError(f"{where}: the data changed while they were read; run again once they are complete")
        start += DIGEST_BYTES
        yield transcript


def _require_some(drawn: DrawnTranscripts) -> None:
    if len(drawn) < 2:
        raise DataError(
            f"{len(drawn)} participant has a marked response, expected 2 or more to draw from; psyfast score scores a single one"
        )


def _open_both(
    inputs: Inputs,
    operators: Operators,
    scan: Scan,
    drawn: DrawnTranscripts,
    manifest: dict[str, Any],
    templates: Sequence[ChatTemplate | None],
    on_progress: OnProgress | None,
    stack: ExitStack,
) -> tuple[_Side, _Side]:
    """Both models loaded, and entered into the manifest; UsageError where they are one and the same."""
    config, run = inputs.config, inputs.run
    limit, own = _limit(config), _half(config)
    recorded, sides = dict(manifest["models"]), []
    for model_idx, place in enumerate(inputs.located):
        model_run = ModelRun(
            own,
            operators,
            place,
            run,
            inputs.reader,
            scan.digests,
            sum(drawn.num_chars),
            scan.longest,
            (model_idx, 2),
            manifest["peak"]["gflop_per_s"],
            inputs.renderer,
            templates[model_idx],
        )
        stack.enter_context(closing(model_run))
        entry = model_run.open(recorded.get(place.model_id))
        manifest["models"][place.model_id] = {**entry, "conditions": list(inputs.renderer.names)}
        # What the first has not touched yet of what it was planned to take is not there for the second.
        still_to_come = max(0, sum(model_run.memory.bytes_of.values()) - resident_bytes())
        own = replace(config, memory_limit=max(1, limit - still_to_come))
        meter = model_run.meter(on_progress)
        (condition,) = inputs.renderer.names
        records = run.finished_parts(place.model_id, condition)
        for record in records:
            meter.skip(sum(drawn.num_chars[record.transcript_start : record.transcript_stop]))
        sides.append(_Side(model_run, condition, records, PartNumbers(records), meter))
    one, other = (manifest["models"][place.model_id] for place in inputs.located)
    if all(one[key] == other[key] for key in ("weights_sha256", "tokenizer_sha256", "adapters")):
        raise UsageError(f"{one['path']} and {other['path']} are the same model; name two that differ")
    return sides[0], sides[1]


class _Comparison:
    """The batches, looks and decision of a comparison."""

    def __init__(
        self,
        goal: CompareGoal,
        drawn: DrawnTranscripts,
        sides: tuple[_Side, _Side],
        on_look: OnLook | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.goal, self.drawn, self.sides = goal, drawn, sides
        self._on_look, self._should_stop = on_look, should_stop
        self._mean = AnytimeMean(drawn.sizes)
        self._num_scored = [0] * len(drawn.sizes)
        self._most = min(len(drawn), goal.max_participants or len(drawn))
        scored = max((record.transcript_stop for side in sides for record in side.records), default=0)
        if scored > self._most:
            raise RunError(
                f"{sides[0].model_run.run.path}: {scored} participants were scored already, more than --max-participants "
                f"{self._most}; allow {scored} or more"
            )

    def run(self) -> ModelComparison:
        """Score, look and stop."""
        looks: list[Look] = []
        start = 0
        for stop in batch_stops(self.drawn.sizes, self.goal.every, self._most):
            for side in self.sides:
                self._score(side, stop)
            self._take_in(start, stop)
            looks.append(self._look())
            if self._on_look is not None:
                self._on_look(looks[-1], len(self.drawn))
            decision = self._decision(looks[-1])
            # Where an earlier session went further, because it might, all that it scored is used.
            if decision is not None and not any(side.parts_of(stop, self._most) for side in self.sides):
                return self._result(decision, looks)
            start = stop
        raise AssertionError("the last batch decides")

    def _score(self, side: _Side, stop: int) -> None:
        """Make the parts that are missing up to a place."""
        made: list[PartRecord] = []
        for begin, end in gaps(side.records):
            end = stop if end is None else min(end, stop)
            if begin >= end:
                continue
            missing = Missing(begin, end, (side.condition,))
            transcripts = self.drawn.between(begin, end)
            numbers = {side.condition: side.numbers}
            for records in side.model_run.score_range(missing, transcripts, numbers, side.meter):
                made += records
                side.model_run.stop_if_asked(self._should_stop)
        side.records = sorted([*side.records, *made], key=lambda record: record.transcript_start)

    def _take_in(self, start: int, stop: int) -> None:
        """The participants of a batch, in the order of the drawing."""
        differences = self._differences(start, stop)
        for place, transcript in enumerate(self.drawn.between(start, stop), start=start):
            study = self.drawn.study_of[place]
            self._num_scored[study] += 1
            if transcript.key in differences:
                self._mean.add(study, differences[transcript.key])
            else:
                self._mean.leave_out(study)

    def _differences(self, start: int, stop: int) -> dict[Key, float]:
        paths = []
        for side in self.sides:
            folder = side.model_run.run.part_folder(side.model_id, side.condition)
            paths.append([folder / f"part-{record.part_idx:05d}.parquet" for record in side.parts_of(start, stop)])
        return paired_differences(*paths)

    def _look(self) -> Look:
        scored, compared = sum(self._num_scored), sum(self._mean.counts)
        if not self._mean.num_studies:
            raise DataError(
                f"none of {scored} participants has a response that both models scored; the flags in "
                f"{self.sides[0].model_run.run.path} say why (psyfast audit shows what a protocol finds)"
            )
        estimate = float(self._mean.estimate)
        half = float(self._mean.half_width(self.goal.until, self.goal.level))
        known = math.isfinite(estimate)
        return Look(scored, compared, estimate if known else None, half if known and math.isfinite(half) else None)

    def _decision(self, look: Look) -> str | None:
        if self._mean.is_complete:
            return "complete"
        if look.half_width is not None and look.half_width < self.goal.until:
            return "precise"
        if self.goal.stop_at_sign and look.sign:
            return "sign"
        return "limit" if look.num_scored == self._most else None

    def _result(self, decision: str, looks: Sequence[Look]) -> ModelComparison:
        num_scored = looks[-1].num_scored
        records = [record for side in self.sides for record in side.records]
        return ModelComparison(
            base=self.sides[0].model_id,
            post=self.sides[1].model_id,
            goal=self.goal,
            decision=decision,
            looks=tuple(looks),
            studies=tuple(self._studies()),
            num_participants=len(self.drawn),
            num_without_responses=self.drawn.num_without_responses,
            share_of_text=sum(self.drawn.num_chars[:num_scored]) / sum(self.drawn.num_chars),
            num_tokens=sum(record.num_tokens for record in records),
            seconds=sum(sum(record.seconds.values()) for record in records),
        )

    def _studies(self) -> Iterator[StudyDifference]:
        for idx, study in enumerate(self.drawn.studies):
            compared = self._mean.counts[idx]
            mean = float(self._mean.means[idx]) if compared else None
            yield StudyDifference(study, self.drawn.sizes[idx], self._num_scored[idx], compared, mean)


def batch_stops(sizes: Sequence[int], every: int | None, most: int) -> Iterator[int]:
    """Places of the drawing after which there is a look, the last one `most`. The first batch is what an interval takes at
    least, each further one `every` participants, or one of each study.
    """
    size = every or max(LEAST_A_BATCH, len(sizes))
    counts = [0] * len(sizes)
    first = 0
    for study in drawing_order(sizes):
        if first >= most or are_enough(counts, sizes):
            break
        counts[study] += 1
        first += 1
    yield from range(first, most, size)
    yield most
