"""One model over all transcripts of a run: windows are encoded, planned, run and written, those that are there left alone.

A window holds its transcripts under every condition, so that what the conditions share is computed once; it is written as
one part a condition.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from psyfast.config import ScoreConfig
from psyfast.data.conditions.chat_template import ChatTemplate
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encoded import Limits
from psyfast.data.records import Transcript
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.transcripts import TranscriptReader
from psyfast.engine import Engine, model_shape
from psyfast.errors import DataError, RunInterruptedError, UsageError
from psyfast.model.load.locate import Located
from psyfast.model.load.model import LoadedModel, file_hashes, load_model, open_model
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.model.traits import Traits
from psyfast.ops.registry import Operators
from psyfast.parts import Cost, Missing, PartNumbers, Row, missing_ranges, part_record, window_costs, window_rows
from psyfast.plan.batch import batch_builder, plan_batch
from psyfast.plan.flops import NO_FLOP, RequiredFlop, required_flop
from psyfast.plan.memory import MemoryPlan, in_gb
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Plan, Request
from psyfast.plan.windows import Window, windows
from psyfast.preparation import Work, prepared
from psyfast.process_memory import planned_memory
from psyfast.report.progress import Meter, OnProgress, WindowSize
from psyfast.rows import DIGEST_BYTES, EntryScores, transcript_digest
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
    """Scores a run's transcripts under one model: `open`, then `score`."""

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
        started, cpu_started = time.perf_counter(), time.process_time()
        self.tokenizer = Tokenizer(load_tokenizer(self.located))
        self.memory = self._plan_memory(recorded)
        streamed = self.memory.weights == "streamed"
        self.model = load_model(self.located, self.operators, streamed=streamed, read_ahead=self.memory.read_ahead)
        self._to_close.callback(self.model.weights.close)
        self.engine = Engine(self.model.traits, self.model.weights, self.operators, sparse=self.config.sparse)
        entry = self._entry(self.model)
        if recorded is not None:
            require_same_model(recorded, entry, str(self.run.path))
        entry["seconds_to_load"] = time.perf_counter() - started
        entry["cpu_seconds_to_load"] = time.process_time() - cpu_started
        return entry

    def close(self) -> None:
        """End what reads weights in the background."""
        self._to_close.close()

    def _plan_memory(self, recorded: Mapping[str, Any] | None) -> MemoryPlan:
        """What the weights and a window may take, now that the tokenizer is loaded and the data are known."""
        traits, files = open_model(self.located)
        window_slots = self.config.window_slots
        if window_slots is None and recorded is not None:
            window_slots = int(recorded["window_slots"])
        slots = self._slots_of_longest(traits)
        plan = planned_memory(self.config, self.operators, traits, files, slots=slots, window_slots=window_slots)
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

    def _entry(self, model: LoadedModel) -> dict[str, Any]:
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
        finished = {name: self.run.finished_parts(self.model.model_id, name) for name in self._renderer.names}
        numbers = {name: PartNumbers(records) for name, records in finished.items()}
        meter = self.meter(on_progress)
        transcripts = _Checked(iter(self.reader), self._digests)
        for missing in missing_ranges(finished):
            meter.skip(transcripts.skip_to(missing.start))
            pending = islice(transcripts, None if missing.stop is None else missing.stop - missing.start)
            for _ in self.score_range(missing, pending, numbers, meter):
                self.stop_if_asked(should_stop)

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
        self, missing: Missing, transcripts: Iterator[Transcript], numbers: Mapping[str, PartNumbers], meter: Meter
    ) -> Iterator[tuple[PartRecord, ...]]:
        """Score consecutive transcripts under some conditions; yields the records of every window's parts, once they are
        written.
        """
        stopwatch = _Stopwatch()
        limits = Limits(self.config.context_limit, self.model.traits.max_positions)
        renderer, num_workers = self._renderer.only(missing.conditions), self.config.num_workers
        works = self._timed(prepared(transcripts, renderer, self.tokenizer, limits, num_workers=num_workers), stopwatch)
        start, slots, share = missing.start, self.memory.window_slots, self.config.share
        for window in windows(works, lambda work: work.requests, slots, share=share):
            rows, costs = self._score_window(window, len(renderer.names), stopwatch, meter)
            schema = responses_schema(per_token=self.config.per_token)
            records = []
            for condition_idx, name in enumerate(renderer.names):
                of_one = rows[condition_idx]
                record = part_record(
                    numbers[name].take(), start, condition_idx, window.items, of_one, costs[condition_idx]
                )
                self.run.write_part(self.model.model_id, name, record, of_one, schema)
                records.append(record)
            stopwatch.skip()
            start += len(window.items)
            yield tuple(records)

    def _timed(self, works: Iterator[Work], stopwatch: _Stopwatch) -> Iterator[Work]:
        for work in works:
            stopwatch.lap("read_encode")
            yield work
            stopwatch.lap("plan")  # the window that took it in

    def _score_window(
        self, window: Window[Work], num_conditions: int, stopwatch: _Stopwatch, meter: Meter
    ) -> tuple[list[list[Row]], list[Cost]]:
        """Rows and costs by condition."""
        works, plan = window.items, window.plan()
        self._require_room(works[0].transcript, plan)
        stopwatch.lap("plan")
        required = self._required(plan, window)
        num_chars = sum(len(work.transcript.text) for work in works)
        size = WindowSize(num_chars, plan.num_request_tokens, required.total)
        with meter.engine(size):
            entries = self._run_batches(plan, meter)
        stopwatch.lap("engine")
        rows = window_rows(works, plan, entries, num_conditions, per_token=self.config.per_token)
        stopwatch.lap("rows")
        seconds = stopwatch.take()
        meter.finish(size)
        self.spent = self.spent.plus(required, seconds["engine"])
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

    def _run_batches(self, plan: Plan, meter: Meter) -> EntryScores | None:
        """The scores of all batches; None where there is nothing to compute."""
        parts = []
        for batch_idx, batch in enumerate(plan.batches):
            on_layer = meter.on_layer((batch_idx, len(plan.batches)))
            parts.append(EntryScores.of(self.engine.run(batch, on_layer), batch.target_N))
        return EntryScores.joined(parts) if parts else None


class _Checked(Iterator[Transcript]):
    """Transcripts with their count, each held against the digest that the first pass over the data took of it."""

    def __init__(self, transcripts: Iterator[Transcript], digests: bytes) -> None:
        self._transcripts, self._digests = transcripts, digests
        self._position = 0

    def __next__(self) -> Transcript:
        start = self._position * DIGEST_BYTES
        expected = self._digests[start : start + DIGEST_BYTES]
        transcript = next(self._transcripts, None)
        if transcript is None and not expected:
            raise StopIteration
        if transcript is None or transcript_digest(transcript) != expected:
            where = "its end" if transcript is None else f"{transcript.source_file}, row {transcript.source_row}"
            raise DataError(
                f"{where}: the data changed while the run went on; bring back what it began with and --resume, or start anew"
            )
        self._position += 1
        return transcript

    def skip_to(self, position: int) -> int:
        """Pass over transcripts up to a position; returns their characters."""
        return sum(len(transcript.text) for transcript in islice(self, position - self._position))


class _Stopwatch:
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
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now
