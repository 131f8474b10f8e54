"""What `psyfast compare` shows while it runs: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psyfast.metrics.comparison import Look
from psyfast.report.progress import SECONDS_BETWEEN_LINES, OnProgress, Progress, preceded

OnLook = Callable[[Look, int], None]


def look_text(look: Look) -> str:
    """`+0.0312 ± 0.0210`; the half-width is `…` before there is one."""
    estimate = "…" if look.estimate is None else f"{look.estimate:+.4f}"
    return f"{estimate} ± " + ("…" if look.half_width is None else f"{look.half_width:.4f}")


@contextmanager
def reporting_looks(on_start: Callable[[], None]) -> Iterator[tuple[OnProgress, OnLook]]:
    """Yields the callbacks that show progress and looks on standard error; `on_start` is called with the first progress."""
    show = _bar() if sys.stderr.isatty() else _lines()
    with show as (report, on_look):
        yield preceded(report, on_start), on_look


@contextmanager
def _bar() -> Iterator[tuple[OnProgress, OnLook]]:
    from rich import progress as rich_progress
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.TextColumn("{task.fields[used]}"),
        rich_progress.TextColumn("{task.fields[rate]}"),
    )
    console = Console(stderr=True)
    with rich_progress.Progress(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("first look to come", total=1.0, used="", rate="")

        def report(progress: Progress) -> None:
            bar.update(task, rate=f"{progress.tok_per_s:,.0f} tokens/s")

        def on_look(look: Look, num_participants: int) -> None:
            used = f"{look.num_scored:,} of {num_participants:,}"
            bar.update(task, description=look_text(look), used=used, completed=look.num_scored / num_participants)

        yield report, on_look


@contextmanager
def _lines() -> Iterator[tuple[OnProgress, OnLook]]:
    last = time.monotonic()
    shown = "first look to come"

    def tell(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < SECONDS_BETWEEN_LINES:
            return
        last = time.monotonic()
        print(f"{shown}; {progress.model_id}: {progress.tok_per_s:,.0f} tokens/s", file=sys.stderr, flush=True)

    def on_look(look: Look, num_participants: int) -> None:
        nonlocal shown
        shown = f"{look_text(look)} nats, {look.num_scored:,} of {num_participants:,} participants"

    yield tell, on_look
