"""compute-sanitizer over a small run of a backend's kernels, a tool at a time."""

from __future__ import annotations

from pathlib import Path

from bench.gpu_check.tasks import Outcome, Row, Task

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 86  # the exit code that we ask for where it finds something


def task(program: str, tool: str, backend: str, job: Row, budget_s: float) -> Task:
    """One tool on one backend. torch's cache of memory is off: inside of it, nothing is out of bounds."""
    return Task(
        part="sanitizer",
        name=f"{backend} {tool}",
        budget_s=budget_s,
        job={**job, "backend": backend},
        prefix=(program, "--tool", tool, "--error-exitcode", str(FOUND), "--target-processes", "application-only"),
        environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
        explain=explain,
    )


def summary(log: str) -> str | None:
    """What the tool says at the end, None where it says nothing."""
    lines = [line.strip("= ").strip() for line in log.splitlines() if "SUMMARY" in line]
    return lines[-1] if lines else None


def explain(outcome: Outcome, log_path: Path) -> Outcome:
    """The outcome with the tool's own words."""
    log = log_path.read_text(encoding="utf-8", errors="replace")
    outcome.note = summary(log) or "the tool wrote no summary"
    if outcome.error and f"exit code {FOUND}" in outcome.error:
        errors = [
            line.strip("= ").strip() for line in log.splitlines() if "Invalid" in line or "hazard" in line.lower()
        ]
        outcome.error = f"{outcome.note}; first: {errors[0] if errors else 'see the log'}; {log_path}"
    return outcome
