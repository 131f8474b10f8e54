"""Progress while scoring: a bar on a terminal, else a line now and then; and stopping cleanly on Ctrl-C."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

SECONDS_BETWEEN_LINES = 10.0
# Of a bar's line: a bar of 6, "100%", "12,345 tokens/s, 100% of peak, 10:00:00 left", and spaces between.
WIDTH_BESIDE_TITLE = 57
MIN_TITLE_WIDTH = 8


@dataclass(frozen=True)
class Progress:
    """How far a model's scoring is.

    fraction: of the transcripts' characters, those of earlier sessions included. num_tokens, tok_per_s, seconds_left:
    as this session went so far. peak_share: required floating-point operations a second of the engine, as a share of
    the machine's peak; None where that was not measured.
    """

    model_id: str
    model_idx: int
    num_models: int
    fraction: float
    num_tokens: int
    tok_per_s: float
    seconds_left: float
    peak_share: float | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class WindowSize:
    """What a window holds: characters and tokens of its transcripts, and the floating-point operations they require."""

    num_chars: int
    num_tokens: int
    flop: int


class Meter:
    """Turns layers and windows done into Progress.

    place: (index, number) of the model; num_chars: of all transcripts; peak: of the machine in GFLOP/s, if it is known.
    """

    def __init__(
        self,
        model_id: str,
        place: tuple[int, int],
        num_layers: int,
        num_chars: int,
        on_progress: OnProgress | None,
        peak: float | None = None,
    ) -> None:
        self._model_id, self._place = model_id, place
        self._num_layers, self._num_chars = num_layers, num_chars
        self._report, self._peak = on_progress, peak
        self._started = time.perf_counter()
        self._chars_before = 0  # of windows that were finished before this session
        self._chars_done = 0
        self._tokens_done = 0
        self._flop_done = 0
        self._engine_seconds = 0.0
        self._engine_started = self._started
        self._window = WindowSize(0, 0, 0)

    def skip(self, num_chars: int) -> None:
        """Count transcripts that an earlier session scored."""
        self._chars_before += num_chars
        self._chars_done += num_chars

    @contextmanager
    def engine(self, window: WindowSize) -> Iterator[None]:
        """The engine runs a window's batches inside: its time counts for the share of the peak, and nothing else's."""
        self._window, self._engine_started = window, time.perf_counter()
        yield
        self._engine_seconds += time.perf_counter() - self._engine_started
        self._flop_done += window.flop

    def on_layer(self, batch: tuple[int, int] = (0, 1)) -> Callable[[int], None]:
        """The callback for the layers of a batch of the window that the engine runs; batch: (index, number) in it."""
        batch_idx, num_batches = batch
        window = self._window

        def report(layer_idx: int) -> None:
            share = (batch_idx + (layer_idx + 1) / self._num_layers) / num_batches
            self._tell(
                self._chars_done + share * window.num_chars,
                self._tokens_done + int(share * window.num_tokens),
                self._flop_done + share * window.flop,
                self._engine_seconds + time.perf_counter() - self._engine_started,
            )

        return report

    def finish(self, window: WindowSize) -> None:
        """Count a window that is written."""
        self._chars_done += window.num_chars
        self._tokens_done += window.num_tokens
        self._tell(self._chars_done, self._tokens_done, self._flop_done, self._engine_seconds)

    def _tell(self, num_chars: float, num_tokens: int, flop: float, engine_seconds: float) -> None:
        if self._report is None:
            return
        elapsed = max(1e-9, time.perf_counter() - self._started)
        left = elapsed * max(0.0, self._num_chars - num_chars) / max(1.0, num_chars - self._chars_before)
        fraction = min(1.0, num_chars / max(1, self._num_chars))
        peak_share = peak_share_of(flop, engine_seconds, self._peak)
        rate = num_tokens / elapsed
        self._report(Progress(self._model_id, *self._place, fraction, num_tokens, rate, left, peak_share))


def peak_share_of(flop: float, seconds: float, peak: float | None) -> float | None:
    """The share of a peak in GFLOP/s; None where it is not known or nothing was computed."""
    return None if peak is None or seconds <= 0 else flop / seconds / (peak * 1e9)


def preceded(report: OnProgress, on_start: Callable[[], None]) -> OnProgress:
    """The callback, with `on_start` called once, before the first progress."""
    started = False

    def on_progress(progress: Progress) -> None:
        nonlocal started
        if not started:
            on_start()
            started = True
        report(progress)

    return on_progress


@contextmanager
def reporting(on_start: Callable[[], None]) -> Iterator[OnProgress]:
    """Yields the callback that shows progress on standard error; `on_start` is called when the first comes."""
    show = _bar() if sys.stderr.isatty() else _lines()
    with show as report:
        yield preceded(report, on_start)


@contextmanager
def _bar() -> Iterator[OnProgress]:
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.table import Column

    console = Console(stderr=True)
    title_width = max(MIN_TITLE_WIDTH, console.width - WIDTH_BESIDE_TITLE)
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=None, table_column=Column(ratio=1)),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
    )
    with rich_progress.Progress(*columns, console=console, transient=True, expand=True) as bar:
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            name = progress.model_id
            if name not in tasks:
                tasks[name] = bar.add_task(_title(progress, title_width), total=1.0, rate="")
            bar.update(tasks[name], completed=progress.fraction, rate=_rate(progress))

        yield report


@contextmanager
def _lines() -> Iterator[OnProgress]:
    last: float | None = None

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        last = now if last is None else last  # the first comes when the scoring begins, not the loading
        if now - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        line = f"{_title(progress)}: {progress.fraction:.0%}, {_rate(progress)}"
        print(line, file=sys.stderr, flush=True)

    yield report


def _rate(progress: Progress) -> str:
    hours, seconds = divmod(round(progress.seconds_left), 3600)
    left = f"{hours}:{seconds // 60:02}:{seconds % 60:02}" if hours else f"{seconds // 60}:{seconds % 60:02}"
    share = "" if progress.peak_share is None else f" {progress.peak_share:.0%} of peak,"
    return f"{progress.tok_per_s:,.0f} tokens/s,{share} {left} left"


def _title(progress: Progress, width: int | None = None) -> str:
    """The model's name and place; the name is cut where both are wider than `width`."""
    place = f" ({progress.model_idx + 1} of {progress.num_models})" if progress.num_models > 1 else ""
    name = progress.model_id
    if width is not None and len(name) + len(place) > width:
        name = name[: max(1, width - len(place) - 1)] + "…"
    return name + place


class Stopper:
    """Ctrl-C: once to stop after the part at hand, twice to stop at once. Before the scoring begins, once stops."""

    def __init__(self) -> None:
        self._armed = self._asked = False
        self._before: Any = None

    def arm(self) -> None:
        """From now on there is a part at hand that is worth finishing."""
        self._armed = True

    def is_asked(self) -> bool:
        """Whether to stop after the part at hand."""
        return self._asked

    def __enter__(self) -> Stopper:
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._armed or self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nStopping after the part at hand; Ctrl-C again stops at once.", file=sys.stderr, flush=True)
