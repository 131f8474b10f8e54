"""Tasks with budgets: a process each, what became of it, and a line on the terminal as it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.gpu_check.building import ROOT

Row = dict[str, Any]
GRACE_S = 12.0  # beyond a task's budget: to end the case at hand by itself


@dataclass(frozen=True)
class Task:
    """A job for the worker. prefix: a program that runs it (a sanitizer); explain: reads what that wrote into the log.

    ours=False: somebody else's code; that it dies is no failure of psyfast.
    """

    part: str
    name: str
    budget_s: float
    job: Row
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    explain: Callable[[Outcome, Path], Outcome] | None = None
    ours: bool = True


@dataclass
class Outcome:
    """What became of a task. left_out: cases that its budget had no room for; note: a sentence for the report."""

    part: str
    name: str
    seconds: float
    rows: list[Row] = field(default_factory=list)
    error: str | None = None
    note: str | None = None
    skipped: bool = False

    @property
    def checked(self) -> list[Row]:
        """Rows of what was run."""
        return [row for row in self.rows if not row.get("left_out")]

    @property
    def failures(self) -> list[Row]:
        """Rows that did not pass."""
        return [row for row in self.checked if row.get("passed") is False]

    @property
    def left_out(self) -> list[Row]:
        """Rows of what was not."""
        return [row for row in self.rows if row.get("left_out")]

    @property
    def failed(self) -> bool:
        """Whether anything is wrong; what was left out or could not be tried is not wrong."""
        return not self.skipped and (self.error is not None or bool(self.failures))

    @property
    def result(self) -> str:
        """One word, or two."""
        if self.skipped:
            return "not run"
        return "FAILED" if self.failed else ("passed" if self.checked else "nothing run")

    def line(self) -> str:
        """For the terminal."""
        said = f"{self.part:12} {self.name:34} {self.result:8} {len(self.checked) - len(self.failures)} of {len(self.checked)} passed"
        said += f", {len(self.left_out)} left out" if self.left_out else ""
        said += f", {self.seconds:.1f} s"
        why = self.error or self.note
        return f"{said}: {why[:300]}" if why else said

    def to_dict(self) -> Row:
        """For the JSON report."""
        return {**asdict(self), "result": self.result}


class Runner:
    """Runs tasks until the time of all of them is up. folder: for jobs, rows and logs."""

    def __init__(self, folder: Path, deadline: float, say: Callable[[str], None] = print) -> None:
        self.folder, self.deadline, self.say = folder, deadline, say
        self.outcomes: list[Outcome] = []
        (folder / "tasks").mkdir(parents=True, exist_ok=True)

    def add(self, outcome: Outcome) -> Outcome:
        """Take down and say what became of something."""
        self.outcomes.append(outcome)
        self.say(outcome.line())
        return outcome

    def run(self, task: Task) -> Outcome:
        """One task; whatever it dies of is written down."""
        left = self.deadline - time.monotonic() - GRACE_S
        if left < 5.0:
            return self.add(Outcome(task.part, task.name, 0.0, note="left out: no time was left", skipped=True))
        outcome = run_task(task, self.folder / "tasks", min(task.budget_s, left))
        if not task.ours and outcome.error:
            outcome.note, outcome.error, outcome.skipped = f"left out: {outcome.error}", None, True
        return self.add(outcome)

    def run_together(self, tasks: Iterable[Task], width: int) -> list[Outcome]:
        """Several at a time, where nothing is timed."""
        with ThreadPoolExecutor(width) as pool:
            return list(pool.map(self.run, tasks))


def run_task(task: Task, folder: Path, budget_s: float) -> Outcome:
    """A worker's process, killed with all that it started when it does not end."""
    stem = "-".join([task.part, *task.name.replace(",", "").split()])
    rows_path, log_path = folder / f"{stem}.jsonl", folder / f"{stem}.log"
    rows_path.unlink(missing_ok=True)
    job = {**task.job, "part": task.part, "budget_s": budget_s, "rows": str(rows_path)}
    job_path = folder / f"{stem}.json"
    job_path.write_text(json.dumps(job), encoding="utf-8")
    command = [*task.prefix, sys.executable, "-m", "bench.gpu_check.worker", str(job_path)]
    started = time.monotonic()
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TRITON_CACHE_DIR": str(folder / "triton"), **dict(task.environment)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(budget_s + GRACE_S)
            error = None if code == 0 else f"exit code {code}: {last_lines(log_path)}"
        except subprocess.TimeoutExpired:
            error = f"killed after {budget_s + GRACE_S:.0f} s"
        finally:
            end(process)
    outcome = Outcome(task.part, task.name, time.monotonic() - started, read_rows(rows_path), error)
    return task.explain(outcome, log_path) if task.explain else outcome


def end(process: subprocess.Popen[bytes]) -> None:
    """The process and its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_rows(path: Path) -> list[Row]:
    """Whole lines; the last one may have been cut off."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def last_lines(path: Path, count: int = 6) -> str:
    """The end of a log in one line."""
    lines: Sequence[str] = path.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    return " | ".join(line.strip() for line in lines[-count:])
