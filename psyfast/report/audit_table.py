"""The tables that `psyfast audit` prints: counts by study, then examples of what goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

DASH = "–"

_COLUMNS = (
    ("exact", None, "exact\nscored"),
    ("exact", "truncated", "cut"),
    ("exact", "straddles", "strad-\ndles"),
    ("paper", None, "paper\nscored"),
    ("paper", "truncated", "cut"),
    ("paper", "missed", "missed"),
    ("paper", "runs_on", "runs\non"),
    ("paper", "past_context", "past"),
)
"""Protocol, flag (None: what is scored), heading. Narrow, as a study's name needs the room."""

_LEGEND = {
    "truncated": "cut: exact, leaves the model's context and is not scored; paper, behind 32,768 characters",
    "straddles": "straddles: scored with a token that also covers text outside of the response",
    "runs_on": "runs on: its close marker merged with later text, so later text is scored too",
    "missed": "missed: the study's scan passes over it",
    "past_context": "past: scored although it leaves the model's context",
}


class Report(Protocol):
    """An audit: what `psyfast.data.audit.AuditReport` is."""

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON takes it."""


def print_audit(report: Report, console: Console) -> None:
    """Print an audit: table, legend, examples."""
    audit = report.to_dict()
    studies = audit["studies"]
    console.print(audit_table(studies))
    for note in notes(studies):
        console.print(note, style="dim", highlight=False)
    for study in studies:
        if study["examples"]:
            console.print(f"\n[bold]{escape(study['study'])}[/bold]", highlight=False)
        for example in study["examples"]:
            for line in example_lines(example):
                console.print(line)


def audit_table(studies: Sequence[Mapping[str, Any]]) -> Table:
    """One line a study, one over all where there are several; findings that never occur have no column."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("experiment", overflow="fold")
    table.add_column("re-\nsponses", justify="right", no_wrap=True)
    columns = [(protocol, flag) for protocol, flag, _ in _COLUMNS if flag is None or _sum_of(studies, protocol, flag)]
    for protocol, flag, heading in _COLUMNS:
        if (protocol, flag) in columns:
            table.add_column(heading, justify="right", no_wrap=True)
    for study in studies:
        table.add_row(escape(study["study"]), *_cells([study], columns), end_section=study is studies[-1])
    if len(studies) > 1:
        table.add_row("all", *_cells(studies, columns), style="bold")
    return table


def _cells(studies: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str | None]]) -> list[str]:
    counts = [sum(study["num_responses"] for study in studies)]
    counts += [_sum_of(studies, protocol, flag) for protocol, flag in columns]
    return [f"{count:,}" if count else DASH for count in counts]


def _sum_of(studies: Iterable[Mapping[str, Any]], protocol: str, flag: str | None) -> int:
    """Responses of a flag, or (None) those that are scored."""
    if flag is None:
        return sum(study["num_scored"][protocol] for study in studies)
    return sum(study["flags"][protocol].get(flag, 0) for study in studies)


def notes(studies: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table's headings mean, as far as they occur, and the counts that it has no column for."""
    lines = [
        text
        for flag, text in _LEGEND.items()
        if any(_sum_of(studies, protocol, flag) for protocol in ("exact", "paper"))
    ]
    counts = {
        "inside another response's run-on span": sum(study["num_swallowed"] for study in studies),
        "empty": _sum_of(studies, "exact", "empty"),
        "without close marker": _sum_of(studies, "exact", "unbalanced_marker"),
        "at the very first token": _sum_of(studies, "exact", "unscorable_first_token"),
    }
    found = [f"{what} {number:,}" for what, number in counts.items() if number]
    if found:
        lines.append(f"responses {', '.join(found)}")
    num_stray = sum(study["num_stray_closers"] for study in studies)
    if num_stray:
        lines.append(f"close markers without an open one (they are text): {num_stray:,}")
    return lines


def example_lines(example: Mapping[str, Any]) -> list[Text]:
    """An example: whose response, what stands there, and the tokens, those that are scored underlined between bars."""
    kind = example["kind"].replace("_", " ")
    swallowed = f", swallows {example['num_swallowed']:,}" if example["num_swallowed"] else ""
    head = Text.assemble(
        (f"{example['protocol']} {kind}", "yellow"),
        f"{swallowed}: response {example['response_idx']} of participant {example['participant']}",
    )
    lines = [head, Text(f"  text    {visible(example['context'])}")]
    if example["tokens"]:
        lines.append(_token_line(example))
    return lines


def _token_line(example: Mapping[str, Any]) -> Text:
    line = Text("  tokens  ")
    start, stop = example["scored_start"], example["scored_stop"]
    for token_idx, token in enumerate(example["tokens"]):
        is_scored = start is not None and start <= token_idx < stop
        line.append(f"[{visible(token)}]", style="bold underline" if is_scored else "dim")
    if start is None:
        line.append("  none scored", style="dim")
    return line


def visible(text: str) -> str:
    """Line feeds and the like as escapes, so that an example stays on its line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
