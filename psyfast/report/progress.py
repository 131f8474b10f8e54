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


@dataclass(frozen=True)
class Progress:
    """How far a model's scoring is.

    fraction: of the transcripts' characters, those of earlier sessions included. num_tokens, tok_per_s, seconds_left:
    as this session went so far.
    """

    model_id: str
    model_idx: int
    num_models: int
    fraction: float
    num_tokens: int
    tok_per_s: float
    seconds_left: float


OnProgress = Callable[[Progress], None]


class Meter:
    """Turns layers and windows done into Progress. place: (index, number) of the model; num_chars: of all transcripts."""

    def __init__(
        self, model_id: str, place: tuple[int, int], num_layers: int, num_chars: int, on_progress: OnProgress | None
    ) -> None:
        self._model_id, self._place = model_id, place
        self._num_layers, self._num_chars = num_layers, num_chars
        self._report = on_progress
        self._started = time.perf_counter()
        self._chars_before = 0  # of windows that were finished before this session
        self._chars_done = 0
        self._tokens_done = 0

    def skip(self, num_chars: int) -> None:
        """Count transcripts that an earlier session scored."""
        self._chars_before += num_chars
        self._chars_done += num_chars

    def on_layer(self, num_chars: int, num_tokens: int, batch: tuple[int, int] = (0, 1)) -> Callable[[int], None]:
        """The callback for the layers of a window of so many characters and tokens; batch: (index, number) in it."""
        batch_idx, num_batches = batch

        def report(layer_idx: int) -> None:
            share = (batch_idx + (layer_idx + 1) / self._num_layers) / num_batches
            self._tell(self._chars_done + share * num_chars, self._tokens_done + int(share * num_tokens))

        return report

    def finish(self, num_chars: int, num_tokens: int) -> None:
        """Count a window that is written."""
        self._chars_done += num_chars
        self._tokens_done += num_tokens
        self._tell(self._chars_done, self._tokens_done)

    def _tell(self, num_chars: float, num_tokens: int) -> None:
        if self._report is None:
            return
        elapsed = max(1e-9, time.perf_counter() - self._started)
        left = elapsed * max(0.0, self._num_chars - num_chars) / max(1.0, num_chars - self._chars_before)
        fraction = min(1.0, num_chars / max(1, self._num_chars))
        self._report(Progress(self._model_id, *self._place, fraction, num_tokens, num_tokens / elapsed, left))


@contextmanager
def reporting(on_start: Callable[[], None]) -> Iterator[OnProgress]:
    """Yields the callback that shows progress on standard error; `on_start` is called when the first comes."""
    show = _bar() if sys.stderr.isatty() else _lines()
    with show as report:
        started = False

        def on_progress(progress: Progress) -> None:
            nonlocal started
            if not started:
                on_start()
                started = True
            report(progress)

        yield on_progress


@contextmanager
def _bar() -> Iterator[OnProgress]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=24),
        rich_progress.TaskProgressColumn(),
        rich_progress.TextColumn("{task.fields[rate]}"),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            name = progress.model_id
            if name not in tasks:
                tasks[name] = bar.add_task(_title(progress), total=1.0, rate="")
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
    return f"{progress.tok_per_s:,.0f} tokens/s, {left} left"


def _title(progress: Progress) -> str:
    place = f" ({progress.model_idx + 1} of {progress.num_models})" if progress.num_models > 1 else ""
    return progress.model_id + place


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
