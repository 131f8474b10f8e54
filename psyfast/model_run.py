"""One model over all transcripts of a run: windows are encoded, planned, run and written, those that are there left alone."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice, tee
from typing import Any

import numpy as np

from psyfast.config import ScoreConfig
from psyfast.data.encode import Encoded, Protocol, encode_many
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
from psyfast.plan.batch import batch_builder, plan_batch
from psyfast.plan.flops import NO_FLOP, RequiredFlop, required_flop
from psyfast.plan.memory import MemoryPlan, in_gb
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Plan, Request
from psyfast.plan.windows import Window, windows
from psyfast.process_memory import planned_memory
from psyfast.report.progress import Meter, OnProgress, WindowSize
from psyfast.rows import DIGEST_BYTES, EntryScores, TranscriptScores, request_of, response_rows, transcript_digest
from psyfast.store.manifest import require_same_model
from psyfast.store.run_folder import PartRecord, RunFolder
from psyfast.store.schema import responses_schema

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """A transcript on its way to the engine."""

    transcript: Transcript
    encoded: Encoded
    request: Request


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
    ) -> None:
        self.config, self.operators, self.located = config, operators, located
        self._to_close = ExitStack()
        self.run, self.reader = run, reader
        self._digests, self._num_chars, self._longest = digests, num_chars, longest
        self._place, self._peak = place, peak
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
        """Page slots of the transcript with the most characters."""
        (encoded,) = self._encoded([self._longest], traits.max_positions, num_workers=0)
        request = request_of(encoded)
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
            "stored_as": list(model.stored_as),
            "dtype": str(model.weights.embedding.dtype).removeprefix("torch."),
            "quantisation": model.stored_as[0] if model.stored_as[0] not in ("F32", "F16", "BF16") else None,
            "adapters": [],
            "traits": json.loads(json.dumps(asdict(model.traits))),
            "window_slots": self.memory.window_slots,
            "memory": asdict(self.memory),
        }

    def score(self, on_progress: OnProgress | None, should_stop: Callable[[], bool] | None) -> None:
        """Make every part that is missing."""
        for condition in self.config.conditions:
            meter = self.meter(on_progress)
            finished = self.run.finished_parts(self.model.model_id, condition)
            transcripts = _Checked(iter(self.reader), self._digests)
            for part_idx, start, stop in gaps(finished):
                meter.skip(transcripts.skip_to(start))
                pending = islice(transcripts, None if stop is None else stop - start)
                for record in self.score_parts(condition, (part_idx, start), pending, meter):
                    self.stop_if_asked(should_stop, record)

    def meter(self, on_progress: OnProgress | None) -> Meter:
        """What measures how far this model is."""
        num_layers = self.model.traits.num_layers
        return Meter(self.model.model_id, self._place, num_layers, self._num_chars, on_progress, self._peak)

    def stop_if_asked(self, should_stop: Callable[[], bool] | None, last: PartRecord) -> None:
        """RunInterruptedError after a part where that was asked for."""
        if should_stop is not None and should_stop():
            raise RunInterruptedError(
                f"stopped after part {last.part_idx} of model {self.model.model_id}; the same command with "
                "--resume goes on from there"
            )

    def score_parts(
        self, condition: str, first: tuple[int, int], transcripts: Iterator[Transcript], meter: Meter
    ) -> Iterator[PartRecord]:
        """Score transcripts, window by window, into parts from number (part, transcript) `first` on; each is yielded once
        it is written.
        """
        part_idx, start = first
        stopwatch = _Stopwatch()
        works = self._works(transcripts, stopwatch)
        for window in windows(works, lambda work: work.request, self.memory.window_slots, share=self.config.share):
            yield self._score_window(condition, part_idx, start, window, stopwatch, meter)
            part_idx, start = part_idx + 1, start + len(window.items)

    def _works(self, transcripts: Iterator[Transcript], stopwatch: _Stopwatch) -> Iterator[Work]:
        kept, to_encode = tee(transcripts)
        encoded = self._encoded(to_encode, self.model.traits.max_positions, self.config.num_workers)
        for transcript, one in zip(kept, encoded, strict=True):
            work = Work(transcript, one, request_of(one))
            stopwatch.lap("read_encode")
            yield work
            stopwatch.lap("plan")  # the window that took it in

    def _encoded(self, transcripts: Iterable[Transcript], max_positions: int, num_workers: int) -> Iterator[Encoded]:
        return encode_many(
            transcripts,
            self.tokenizer,
            Protocol(self.config.protocol),
            context_limit=self.config.context_limit,
            max_positions=max_positions,
            num_workers=num_workers,
        )

    def _score_window(
        self, condition: str, part_idx: int, start: int, window: Window[Work], stopwatch: _Stopwatch, meter: Meter
    ) -> PartRecord:
        works, plan = window.items, window.plan()
        self._require_room(works[0].transcript, plan)
        stopwatch.lap("plan")
        required = self._required(plan, works)
        num_chars = sum(len(work.transcript.text) for work in works)
        size = WindowSize(num_chars, plan.num_request_tokens, required.total)
        with meter.engine(size):
            entries = self._run_batches(plan, meter)
        stopwatch.lap("engine")
        rows: list[dict[str, Any]] = []
        for work, tokens, branches in zip(works, plan.requests, plan.branches, strict=True):
            share = TranscriptScores(entries, tokens, branches)
            rows += response_rows(work.transcript, work.encoded, work.request, share, per_token=self.config.per_token)
        stopwatch.lap("rows")
        record = _record(part_idx, start, works, plan, rows, stopwatch.take())
        schema = responses_schema(per_token=self.config.per_token)
        self.run.write_part(self.model.model_id, condition, record, rows, schema)
        stopwatch.skip()
        meter.finish(size)
        self.spent = self.spent.plus(required, record.seconds["engine"])
        log.info("part %d: %d transcripts, %s", part_idx, len(works), record.seconds)
        return record

    def _required(self, plan: Plan, works: list[Work]) -> RequiredFlop:
        """What a window requires; where prefixes are computed anew for comparison, what they would with sharing."""
        if not self.config.share:
            plan = plan_batch([work.request for work in works])
        shape = model_shape(self.model.traits)
        return sum((required_flop(batch, shape) for batch in plan.batches), NO_FLOP)

    def _require_room(self, transcript: Transcript, plan: Plan) -> None:
        """Refuse a transcript that alone passes what the memory limit holds. The longest one was looked at before."""
        slots = max(batch.pages.num_pages for batch in plan.batches) * PAGE_SLOTS
        if slots > self.memory.max_slots:
            raise UsageError(
                f"{transcript.source_file}, row {transcript.source_row}: takes {slots:,} tokens at once, and "
                f"{self.memory.max_slots:,} fit into {in_gb(self.memory.limit_bytes)} of memory; give --memory-limit "
                f"{in_gb(self.memory.limit_for(slots)).replace(' ', '')} or more"
            )

    def _run_batches(self, plan: Plan, meter: Meter) -> EntryScores:
        parts = []
        for batch_idx, batch in enumerate(plan.batches):
            on_layer = meter.on_layer((batch_idx, len(plan.batches)))
            parts.append(EntryScores.of(self.engine.run(batch, on_layer), batch.target_N))
        return EntryScores.joined(parts)


def gaps(finished: list[PartRecord]) -> Iterator[tuple[int, int, int | None]]:
    """(part, first transcript, transcript after the last or None) of what the finished parts leave to do."""
    part_idx = start = 0
    for record in finished:
        if record.transcript_start > start:
            yield part_idx, start, record.transcript_start
        part_idx, start = record.part_idx + 1, record.transcript_stop
    yield part_idx, start, None


def _record(
    part_idx: int, start: int, works: list[Work], plan: Plan, rows: list[dict[str, Any]], seconds: dict[str, float]
) -> PartRecord:
    flags: Counter[str] = Counter(flag for row in rows for flag in row["flags"])
    tokens_by_study: Counter[str] = Counter()
    for work in works:
        tokens_by_study[work.transcript.study] += work.request.num_tokens
    return PartRecord(
        part_idx=part_idx,
        transcript_start=start,
        transcript_stop=start + len(works),
        num_tokens=plan.num_request_tokens,
        num_unique_tokens=sum(len(batch.token_ids_T) for batch in plan.batches),
        num_scored_rows=sum(len(np.unique(batch.rows_N)) for batch in plan.batches),
        num_responses=len(rows),
        flags=dict(flags),
        tokens_by_study=dict(tokens_by_study),
        seconds=seconds,
    )


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
