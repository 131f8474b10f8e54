"""What `psyfast compare` ends with: each study's part, the interval, and what it took."""

from __future__ import annotations

from rich import box
from rich.table import Table

from psyfast.metrics.comparison import DECISIONS, ModelComparison

DASH = "–"


def compare_table(found: ModelComparison) -> Table:
    """One line a study, one over all with the interval."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("experiment", overflow="fold")
    table.add_column("partici-\npants", justify="right")
    table.add_column("scored", justify="right")
    table.add_column("difference\nnats", justify="right")
    table.add_column("half-\nwidth", justify="right")
    for study in found.studies:
        scored = _count(study.num_scored, study.num_compared)
        table.add_row(study.study, f"{study.num_participants:,}", scored, _signed(study.mean_nats), "")
    last = found.looks[-1]
    half = DASH if last.half_width is None else f"{last.half_width:.4f}"
    scored = _count(last.num_scored, last.num_compared)
    cells = ("all (mean)", f"{found.num_participants:,}", scored, _signed(found.estimate), half)
    table.add_section()
    table.add_row(*cells, style="bold")
    return table


def verdict(found: ModelComparison) -> list[str]:
    """What was found and why it stopped, a sentence each."""
    last = found.looks[-1]
    lines = [f"{found.post} − {found.base}, nats a response: {_interval(found)}."]
    if last.sign:
        lines.append(f"{found.post} predicts {'worse' if last.sign > 0 else 'better'} than {found.base}.")
    lines.append(f"Stopped after look {len(found.looks)}: {DECISIONS[found.decision]}{_goal(found)}.")
    lines.append(
        f"Scored: {last.num_scored:,} of {found.num_participants:,} participants ({found.share_of_participants:.0%}), "
        f"{found.share_of_text:.0%} of the text; {found.num_tokens:,} tokens under both models in {found.seconds:,.1f} s."
    )
    return lines


def notes(found: ModelComparison) -> list[str]:
    """What a reader has to know, a sentence each."""
    last = found.looks[-1]
    said = [
        "difference: mean over studies of the mean over participants of their mean difference, over the responses that "
        "both models scored; above 0 the second model predicts worse"
    ]
    if found.decision != "complete" and last.half_width is not None:
        said.append(
            f"interval: an asymptotic confidence sequence, {found.goal.level:.0%} at all looks at once (docs/compare.md)"
        )
    if last.num_compared < last.num_scored:
        said.append("scored: those compared of those scored, where some have no response that both models scored")
    if found.num_without_responses:
        said.append(f"participants without a marked response, left out: {found.num_without_responses:,}")
    if gone := [
        study.study for study in found.studies if study.num_scored == study.num_participants > study.num_compared == 0
    ]:
        said.append(f"no part of the mean, as nobody in them could be compared: {', '.join(gone)}")
    return said


def _interval(found: ModelComparison) -> str:
    if found.estimate is None:
        return "unknown, as a study has nobody who was compared yet"
    if found.decision == "complete":
        return f"{found.estimate:+.4f}, exactly, for these participants"
    if found.interval is None:
        return f"{found.estimate:+.4f}, with too few participants for an interval"
    low, high = found.interval
    return f"{found.estimate:+.4f}, {found.goal.level:.0%} interval {low:+.4f} to {high:+.4f}"


def _goal(found: ModelComparison) -> str:
    return f" of {found.goal.until:g}" if found.decision == "precise" else ""


def _count(scored: int, compared: int) -> str:
    return f"{scored:,}" if scored == compared else f"{compared:,} of {scored:,}"


def _signed(value: float | None) -> str:
    return DASH if value is None else f"{value:+.4f}"
