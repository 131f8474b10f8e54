"""One model over all transcripts of a run: windows are encoded, planned, run and written, those that are there left alone.

A window holds its transcripts under every condition, so that what the conditions share is computed once; it is written as
one part a condition.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from psyfast.checked_transcripts import CheckedTranscripts
from psyfast.config import ScoreConfig
from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encoded import Limits
from psyfast.data.records import Transcript
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.transcripts import TranscriptReader
from psyfast.engine import Engine, model_shape, run_together
from psyfast.errors import RunInterruptedError, UsageError
from psyfast.model.load.locate import Located
from psyfast.model.load.model import LoadedModel, file_hashes, load_together, open_model
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.model.traits import Traits
from psyfast.ops.registry import LinearNll, Operators
from psyfast.parts import Cost, Missing, PartNumbers, Row, missing_ranges, part_record, window_costs, window_rows
from psyfast.plan.batch import batch_builder, plan_batch
from psyfast.plan.flops import NO_FLOP, RequiredFlop, required_flop
from psyfast.plan.memory import MemoryPlan, in_gb
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Plan, Request
from psyfast.plan.windows import Window, windows
from psyfast.preparation import Work, prepared
from psyfast.process_memory import planned_memory, taken_together
from psyfast.report.progress import Meter, OnProgress, WindowSize
from psyfast.rows import EntryScores
from psyfast.stopwatch import Stopwatch
from psyfast.store.manifest import require_same_model
from psyfast.store.run_folder import PartRecord, RunFolder
from psyfast.store.schema import responses_schema

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spent:
    """What windows required of the engine, and the seconds that it took."""

    required: RequiredFlop = NO_FLOP
    seconds: float = 0.0

    def plus(self, required: RequiredFlop, seconds: float) -> Spent:
        """With another window's, or another model's."""
        return Spent(self.required + required, self.seconds + seconds)


class ModelRun:
    """Scores a run's transcripts under one model: `open`, then `score`; or several in step (`open_together`)."""

    memory: MemoryPlan
    model: LoadedModel
    engine: Engine

    def __init__(
        self,
        config: ScoreConfig,
        operators: Operators,
        located: Located,
        run: RunFolder,
        reader: TranscriptReader,
        digests: bytes,
        num_chars: int,
        longest: Transcript,
        place: tuple[int, int],
        peak: float | None,
        renderer: Renderer,
        template: ChatTemplate | None,
    ) -> None:
        self.config, self.operators, self.located = config, operators, located
        self._to_close = ExitStack()
        self.run, self.reader = run, reader
        self._digests, self._num_chars, self._longest = digests, num_chars, longest
        self._place, self._peak = place, peak
        self._template, self._renderer = template, renderer.with_template(template)
        self.spent = Spent()

    def open(self, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
        """Load the model and return its entry of the manifest; RunError if the run had another under its name."""
        return open_together([self], [recorded])[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's, loaded when it is first wanted."""
        return Tokenizer(load_tokenizer(self.located))

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of what it is scored under."""
        return self._renderer.names

    def use(self, model: LoadedModel, lead: ModelRun, linear_nll: LinearNll | None) -> None:
        """Take a loaded model, with what it shares with the one that was opened first."""
        self.tokenizer, self.memory, self.model = lead.tokenizer, lead.memory, model
        self._to_close.callback(model.weights.close)
        self.engine = Engine(
            model.traits, model.weights, self.operators, sparse=self.config.sparse, linear_nll=linear_nll
        )

    def close(self) -> None:
        """End what reads weights in the background, and let go of the model, for the next one of the run to have its memory."""
        self._to_close.close()
        for held in ("model", "engine", "tokenizer"):
            self.__dict__.pop(held, None)

    def plan_memory(self, recorded: Mapping[str, Any] | None, together: Sequence[Located]) -> MemoryPlan:
        """What the weights and a window may take, now that the tokenizer is loaded and the data are known."""
        traits, files = open_model(self.located)
        window_slots = self.config.window_slots
        if window_slots is None and recorded is not None:
            window_slots = int(recorded["window_slots"])
        slots = self._slots_of_longest(traits)
        plan = planned_memory(
            self.config,
            self.operators,
            traits,
            files,
            slots=slots,
            window_slots=window_slots,
            together=taken_together(together, traits, self.operators),
        )
        log.info(
            "%s: weights %s, windows of %d tokens, planned to take %s of %s",
            self.located.model_id,
            plan.weights,
            plan.window_slots,
            in_gb(sum(plan.bytes_of.values())),
            in_gb(plan.limit_bytes),
        )
        return plan

    def _slots_of_longest(self, traits: Traits) -> int:
        """Page slots of the largest text of the transcript with the most characters."""
        limits = Limits(self.config.context_limit, traits.max_positions)
        (work,) = prepared(iter([self._longest]), self._renderer, self.tokenizer, limits)
        return max(map(self._slots_alone, work.requests), default=PAGE_SLOTS)

    def _slots_alone(self, request: Request) -> int:
        if not self.config.share:  # its options are split over batches
            return -(-len(request.ids) // PAGE_SLOTS) * PAGE_SLOTS
        builder = batch_builder()
        builder.add([request])
        return builder.num_slots

    def entry(self) -> dict[str, Any]:
        """What the manifest says of the model."""
        model = self.model
        return {
            "model_id": model.model_id,
            "name": self.located.name,
            "path": str(self.located.path),
            "kind": self.located.kind,
            "revision": self.located.revision,
            "commit": self.located.path.name if self.located.kind == "hub" else None,
            "weights_sha256": file_hashes(model.files),
            "tokenizer_sha256": self.tokenizer.sha256,
            "template_sha256": None if self._template is None else self._template.sha256,
            "stored_as": list(model.stored_as),
            "dtype": str(model.weights.embedding.dtype).removeprefix("torch."),
            "quantisation": model.stored_as[0] if model.stored_as[0] not in ("F32", "F16", "BF16") else None,
            "adapters": [] if self.located.adapter is None else [str(self.located.adapter)],
            "traits": json.loads(json.dumps(asdict(model.traits))),
            "window_slots": self.memory.window_slots,
            "memory": asdict(self.memory),
        }

    def score(self, on_progress: OnProgress | None, should_stop: Callable[[], bool] | None) -> None:
        """Make every part that is missing."""
        score_together([self], on_progress, should_stop)

    def finished(self) -> dict[str, list[PartRecord]]:
        """The parts that are there, by condition."""
        return {name: self.run.finished_parts(self.located.model_id, name) for name in self._renderer.names}

    def missing(self) -> list[Missing]:
        """What is still to be scored."""
        return missing_ranges(self.finished())

    def checked_transcripts(self) -> CheckedTranscripts:
        """The run's transcripts from the first on."""
        return CheckedTranscripts(iter(self.reader), self._digests)

    def meter(self, on_progress: OnProgress | None) -> Meter:
        """What measures how far this model is."""
        num_layers = self.model.traits.num_layers
        return Meter(self.model.model_id, self._place, num_layers, self._num_chars, on_progress, self._peak)

    def stop_if_asked(self, should_stop: Callable[[], bool] | None) -> None:
        """RunInterruptedError after a part where that was asked for."""
        if should_stop is not None and should_stop():
            raise RunInterruptedError(
                f"stopped after a part of model {self.model.model_id}; the same command with --resume goes on from there"
            )

    def score_range(
        self,
        missing: Missing,
        transcripts: Iterator[Transcript],
        numbers: Mapping[str, PartNumbers],
        meter: Meter,
        in_step: Sequence[tuple[ModelRun, Mapping[str, PartNumbers]]] = (),
    ) -> Iterator[tuple[PartRecord, ...]]:
        """Score consecutive transcripts under some conditions; yields the records of every window's parts, once they are
        written. in_step: other models of the same base that are scored with this one, with their numbers of parts.
        """
        stopwatch = Stopwatch()
        limits = Limits(self.config.context_limit, self.model.traits.max_positions)
        renderer, num_workers = self._renderer.only(missing.conditions), self.config.num_workers
        works = self._timed(prepared(transcripts, renderer, self.tokenizer, limits, num_workers=num_workers), stopwatch)
        start, slots, share = missing.start, self.memory.window_slots, self.config.share
        for window in windows(works, lambda work: work.requests, slots, share=share):
            rows_of, costs = self._score_window(
                window, len(renderer.names), stopwatch, meter, [run for run, _ in in_step]
            )
            together = [(self, numbers), *in_step]
            records = [
                run.write_window(window, start, renderer.names, rows, costs, of_run)
                for (run, of_run), rows in zip(together, rows_of, strict=True)
            ]
            stopwatch.skip()
            start += len(window.items)
            yield records[0]

    def write_window(
        self,
        window: Window[Work],
        start: int,
        conditions: Sequence[str],
        rows: Sequence[list[Row]],
        costs: Sequence[Cost],
        numbers: Mapping[str, PartNumbers],
    ) -> tuple[PartRecord, ...]:
        """Write a window's parts, one a condition, and return their records. start: of its first transcript."""
        schema = responses_schema(per_token=self.config.per_token)
        records = []
        for condition_idx, name in enumerate(conditions):
            of_one = rows[condition_idx]
            record = part_record(numbers[name].take(), start, condition_idx, window.items, of_one, costs[condition_idx])
            self.run.write_part(self.model.model_id, name, record, of_one, schema)
            records.append(record)
        return tuple(records)

    def _timed(self, works: Iterator[Work], stopwatch: Stopwatch) -> Iterator[Work]:
        for work in works:
            stopwatch.lap("read_encode")
            yield work
            stopwatch.lap("plan")  # the window that took it in

    def _score_window(
        self,
        window: Window[Work],
        num_conditions: int,
        stopwatch: Stopwatch,
        meter: Meter,
        in_step: Sequence[ModelRun],
    ) -> tuple[list[list[list[Row]]], list[Cost]]:
        """Rows by model and condition, and costs by condition, which are the same of every model."""
        works, plan = window.items, window.plan()
        self._require_room(works[0].transcript, plan)
        stopwatch.lap("plan")
        together = [self, *in_step]
        required = self._required(plan, window)
        num_chars = sum(len(work.transcript.text) for work in works)
        num_tokens = plan.num_request_tokens * len(together)
        size = WindowSize(num_chars, num_tokens, required.total * len(together))
        with meter.engine(size):
            entries = self._run_batches(plan, meter, [run.engine for run in together])
        stopwatch.lap("engine")
        rows = [window_rows(works, plan, one, num_conditions, per_token=self.config.per_token) for one in entries]
        stopwatch.lap("rows")
        seconds = {stage: value / len(together) for stage, value in stopwatch.take().items()}
        meter.finish(size)
        for run in together:
            run.spent = run.spent.plus(required, seconds["engine"])
        log.info("%d transcripts, %s", len(works), seconds)
        return rows, window_costs(window, plan, num_conditions, seconds, share=self.config.share)

    def _required(self, plan: Plan, window: Window[Work]) -> RequiredFlop:
        """What a window requires; where prefixes are computed anew for comparison, what they would with sharing."""
        if not self.config.share:
            plan = plan_batch([request for batch in window.requests for request in batch])
        shape = model_shape(self.model.traits)
        return sum((required_flop(batch, shape) for batch in plan.batches), NO_FLOP)

    def _require_room(self, transcript: Transcript, plan: Plan) -> None:
        """Refuse a transcript that alone passes what the memory limit holds. The longest one was looked at before."""
        slots = max((batch.pages.num_pages for batch in plan.batches), default=0) * PAGE_SLOTS
        if slots > self.memory.max_slots:
            raise UsageError(
                f"{transcript.source_file}, row {transcript.source_row}: takes {slots:,} tokens at once, and "
                f"{self.memory.max_slots:,} fit into {in_gb(self.memory.limit_bytes)} of memory; give --memory-limit "
                f"{in_gb(self.memory.limit_for(slots)).replace(' ', '')} or more"
            )

    def _run_batches(self, plan: Plan, meter: Meter, engines: Sequence[Engine]) -> list[EntryScores | None]:
        """The scores of all batches under each engine; None where there is nothing to compute."""
        parts: list[list[EntryScores]] = [[] for _ in engines]
        for batch_idx, batch in enumerate(plan.batches):
            on_layer = meter.on_layer((batch_idx, len(plan.batches)))
            for of_engine, scores in zip(parts, run_together(engines, batch, on_layer), strict=True):
                of_engine.append(EntryScores.of(scores, batch.target_N))
        return [EntryScores.joined(of_engine) if of_engine else None for of_engine in parts]


def open_together(runs: Sequence[ModelRun], recorded: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Load models of one base, which is read once for all, and return their entries of the manifest.

    RunError if the run had another model under one of their names; UsageError where they do not fit into memory together.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    lead, located = runs[0], [run.located for run in runs]
    lead.memory = lead.plan_memory(next((one for one in recorded if one is not None), None), located)
    models = load_together(
        located,
        lead.operators,
        streamed=lead.memory.weights == "streamed",
        read_ahead=lead.memory.read_ahead,
    )
    shared_head: LinearNll | None = None
    entries = []
    for run, model, before in zip(runs, models, recorded, strict=True):
        run.use(model, lead, shared_head if model.keeps_head else None)
        if model.keeps_head:
            shared_head = run.engine.linear_nll
        entry = run.entry()
        if before is not None:
            require_same_model(before, entry, str(run.run.path))
        entries.append(entry)
    for entry in entries:
        entry["seconds_to_load"] = (time.perf_counter() - started) / len(runs)
        entry["cpu_seconds_to_load"] = (time.process_time() - cpu_started) / len(runs)
    return entries


def score_together(
    runs: Sequence[ModelRun], on_progress: OnProgress | None, should_stop: Callable[[], bool] | None
) -> None:
    """Make every missing part of models that were opened together and lack the same ones (`ModelRun.missing`)."""
    finished = [run.finished() for run in runs]
    missing = missing_ranges(finished[0])
    assert all(missing_ranges(of_run) == missing for of_run in finished)
    lead = runs[0]
    numbers = [{name: PartNumbers(records) for name, records in of_run.items()} for of_run in finished]
    in_step = list(zip(runs[1:], numbers[1:], strict=True))
    meter = lead.meter(on_progress)
    transcripts = lead.checked_transcripts()
    for todo in missing:
        meter.skip(transcripts.skip_to(todo.start))
        pending = islice(transcripts, None if todo.stop is None else todo.stop - todo.start)
        for _ in lead.score_range(todo, pending, numbers[0], meter, in_step):
            lead.stop_if_asked(should_stop)
