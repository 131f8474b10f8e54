"""What progress says of the work done, and that a terminal of 80 columns shows it on one line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from psyfast.report import progress as progress_module
from psyfast.report.progress import Meter, Progress, WindowSize, peak_share_of


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(progress_module, "time", time)
    return time


def test_the_share_is_of_the_engines_time_alone(clock: Time) -> None:
    seen: list[Progress] = []
    meter = Meter("tiny", (0, 1), 4, 1000, seen.append, peak=2.0)
    for _ in range(2):
        clock.now += 10  # reading, encoding
        window = WindowSize(num_chars=250, num_tokens=100, flop=8 * 10**9)
        with meter.engine(window):
            report = meter.on_layer()
            clock.now += 2
            report(1)
            clock.now += 3
        clock.now += 5  # writing
        meter.finish(window)
    half, whole, one_and_a_half, both = seen
    assert half.peak_share == pytest.approx(4 / 2 / 2)  # two of four layers in two seconds, of 2 GFLOP/s
    assert whole.peak_share == pytest.approx(8 / 5 / 2)
    assert one_and_a_half.peak_share == pytest.approx(12 / 7 / 2)
    assert both.peak_share == pytest.approx(16 / 10 / 2)
    assert [p.fraction for p in seen] == [0.125, 0.25, 0.375, 0.5]
    assert [p.num_tokens for p in seen] == [50, 100, 150, 200]
    assert both.tok_per_s == pytest.approx(200 / 40)
    assert both.seconds_left == pytest.approx(40)


def test_batches_of_a_window_share_what_it_requires(clock: Time) -> None:
    seen: list[Progress] = []
    meter = Meter("tiny", (0, 1), 2, 100, seen.append, peak=1.0)
    with meter.engine(WindowSize(num_chars=100, num_tokens=40, flop=4 * 10**9)):
        for batch_idx in range(2):
            report = meter.on_layer((batch_idx, 2))
            clock.now += 2
            report(1)
    assert [p.peak_share for p in seen] == pytest.approx([1.0, 1.0])
    assert [p.num_tokens for p in seen] == [20, 40]


def test_skipped_transcripts_count_as_done_and_as_nothing_else(clock: Time) -> None:
    seen: list[Progress] = []
    meter = Meter("tiny", (0, 1), 1, 1000, seen.append, peak=1.0)
    meter.skip(500)
    with meter.engine(window := WindowSize(num_chars=250, num_tokens=10, flop=10**9)):
        clock.now += 2
    meter.finish(window)
    assert seen[-1].fraction == 0.75
    assert seen[-1].peak_share == pytest.approx(0.5)
    assert seen[-1].seconds_left == pytest.approx(2)


def test_no_peak_no_share() -> None:
    assert peak_share_of(1e9, 1.0, None) is None
    assert peak_share_of(1e9, 0.0, 5.0) is None
    assert peak_share_of(1e9, 2.0, 0.25) == 2.0


PROGRAM = """
import time
from psyfast.report.progress import Progress, reporting
with reporting(lambda: None) as report:
    for share in (0.005, 0.714, 1.0):
        report(Progress({name!r}, {idx}, {num}, share, 10, 12345.6, 36000.0, {share}))
        time.sleep(0.15)
"""


def shown_in_a_terminal(columns: int, **fields: object) -> list[str]:
    """Everything that the bar draws on a terminal so wide, line by line, without its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(**fields)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**env, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)
    drawn = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 4096):
                drawn.extend(chunk)
        except OSError:  # the other end was closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=60) == 0
    reader.join(timeout=60)
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize(
    ("name", "idx", "num", "share", "expected"),
    [
        ("smollm2-135m-instruct", 0, 1, 0.714, "smollm2-135m-instruct ━"),
        ("smollm2-135m-instruct", 9, 12, 1.0, "smollm2-135… (10 of 12) ━"),
        ("a-model-with-a-name-of-very-many-parts-1B", 0, 1, 0.714, "a-model-with-a-name-of… ━"),
        ("tiny", 0, 1, None, "tiny ━"),
    ],
)
def test_a_terminal_of_80_columns_shows_one_line(
    name: str, idx: int, num: int, share: float | None, expected: str
) -> None:
    lines = shown_in_a_terminal(80, name=name, idx=idx, num=num, share=share)
    assert max(map(len, lines)) <= 80
    figures = (
        "12,346 tokens/s, 10:00:00 left" if share is None else f"12,346 tokens/s, {share:.0%} of peak, 10:00:00 left"
    )
    assert lines[-1].startswith(expected)
    assert lines[-1].rstrip().endswith(f"100% {figures}")
