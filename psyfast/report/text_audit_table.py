"""The tables that `psyfast audit --trials --options` prints: counts by study, then examples to check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from psyfast.report.audit_table import DASH, visible

Study = Mapping[str, Any]

LOW_SHARE = 0.95
"""Below this share of a study's answers, figures over options carry a warning."""

_REASONS = {
    "too_few_letters": "too few\nletters",
    "word": "word",
    "after_article": "after\na, an",
    "apostrophe": "apos-\ntrophe",
    "abbreviation": "abbrev-\niation",
    "compound": "com-\npound",
    "other_case": "other\ncase",
}


class Report(Protocol):
    """An audit: what `psyfast.data.text_audit.TextAudit` is."""

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON takes it."""


def print_text_audit(report: Report, console: Console, *, trials: bool, options: bool) -> None:
    """Print what was found of trials, of options and letters, or of both."""
    audit = report.to_dict()
    studies, counts = audit["studies"], audit["num_studies"]
    if trials:
        _print(console, trials_table(studies), trials_notes(counts), studies, trial_lines)
    if trials and options:
        console.print()
    if options:
        _print(console, options_table(studies), options_notes(studies, counts), studies, option_lines)
        console.print()
        _print(console, letters_table(studies), letters_notes(counts), studies, refusal_lines)


def _print(
    console: Console,
    table: Table,
    notes: Sequence[str],
    studies: Sequence[Study],
    lines_of: Callable[[Study], list[RenderableType]],
) -> None:
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)
    for study in studies:
        lines = lines_of(study)
        if lines:
            console.print(f"\n[bold]{escape(study['study'])}[/bold]", highlight=False)
        for line in lines:
            console.print(line)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("experiment", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _fill(table: Table, studies: Sequence[Study], cells: Callable[[Sequence[Study]], list[str]]) -> Table:
    """A row for each study, and one over all where there are several."""
    for study in studies:
        table.add_row(escape(study["study"]), *cells([study]), end_section=study is studies[-1])
    if len(studies) > 1:
        table.add_row("all", *cells(studies), style="bold")
    return table


def _sum(studies: Sequence[Study], name: str) -> int:
    return sum(study[name] for study in studies)


def _count(number: int) -> str:
    return f"{number:,}" if number else DASH


# --- trials


def trials_table(studies: Sequence[Study]) -> Table:
    """How many trials there are, how many responses they hold, and what decided, in numbers of transcripts."""
    rules = list(dict.fromkeys(rule for study in studies for rule in study["rules"]))
    table = _table("re-\nsponses", "trials", "responses\na trial", *(f"by\n{rule}" for rule in rules))

    def cells(some: Sequence[Study]) -> list[str]:
        by_rule = [sum(study["rules"].get(rule, 0) for study in some) for rule in rules]
        sizes = _sizes(some) if len(some) == 1 else ""
        return [_count(_sum(some, "num_responses")), _count(_sum(some, "num_trials")), sizes, *map(_count, by_rule)]

    return _fill(table, studies, cells)


def _sizes(studies: Sequence[Study]) -> str:
    """The most frequent number of responses a trial, and what it is between."""
    (study,) = studies
    sizes = [int(size) for size in study["trial_sizes"]]
    if not sizes:
        return DASH
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} ({min(sizes)}–{max(sizes)})"


def trials_notes(counts: Mapping[str, Any]) -> list[str]:
    """What the columns mean, and the counts of studies."""
    meanings = {
        "field": "field: the data's field `trial`",
        "blocks": "blocks: between blank lines",
        "returns": "returns: lines up to where the first response's surroundings come back",
        "lines": "lines: each line with a response",
    }
    by_rule = counts["by_rule"]
    studies = ", ".join(f"{rule} {number}" for rule, number in by_rule.items())
    return [
        "responses a trial: the most frequent number (and the range); by: transcripts that a rule decided on",
        *(text for rule, text in meanings.items() if rule in by_rule),
        f"studies with more than one trial a transcript: {counts['with_trials']} of {counts['studies']}; "
        f"by {studies}; with headings of blocks {counts['with_headings']}",
    ]


def trial_lines(study: Study) -> list[RenderableType]:
    """A study's examples: how a transcript is divided."""
    lines: list[RenderableType] = []
    for example in study["trial_examples"]:
        lines.append(
            Text.assemble(
                (f"by {example['rule']}", "yellow"),
                f": participant {visible(example['participant'])}, trials: {example['num_trials']:,}",
            )
        )
        lines.append(_labelled("instructions", example["instructions_end"]))
        if example["heading"] is not None:
            lines.append(_labelled("heading", example["heading"]))
        lines += [_labelled(f"trial {idx}", text) for idx, text in enumerate(example["trials"])]
    return lines


def _labelled(label: str, text: str) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=14, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(f"  {label}", Text(visible(text)))
    return grid


# --- options


def options_table(studies: Sequence[Study]) -> Table:
    """Shares of answers and of participants with a set; what is uncertain or outside."""
    table = _table("answers", "with a\nset", "share", "partici-\npants", "un-\ncertain", "not in\nset")

    def cells(some: Sequence[Study]) -> list[str]:
        answers, with_set = _sum(some, "num_answers"), _sum(some, "num_with_set")
        warning = "!" if len(some) == 1 and _is_low(some[0]) else ""
        participants = _sum(some, "num_participants_with_set")
        return [
            _count(answers),
            _count(with_set),
            f"{warning}{with_set / answers:.0%}" if with_set else DASH,
            f"{participants:,} of {_sum(some, 'num_transcripts'):,}" if participants else DASH,
            _count(_sum(some, "num_uncertain")),
            _count(_sum(some, "num_outside")),
        ]

    return _fill(table, studies, cells)


def _is_low(study: Study) -> bool:
    return bool(0 < study["num_with_set"] < LOW_SHARE * study["num_answers"])


def options_notes(studies: Sequence[Study], counts: Mapping[str, Any]) -> list[str]:
    """What the columns mean, and the counts of studies."""
    notes = [
        "uncertain: the text never names the set; not in set: the answer is none of the options",
        f"studies with sets: {counts['with_sets']} of {counts['studies']}; for 95 % of their answers "
        f"{counts['with_sets_for_95_percent']}; with sets that are never named {counts['with_uncertain_sets']}",
    ]
    if any(map(_is_low, studies)):
        notes.insert(1, "!: fewer than 95 % of the answers have a set; those who always answer alike have none")
    always_same = _sum(studies, "num_always_same")
    if always_same:
        notes.append(f"transcripts without a set because all their answers are the same: {always_same:,}")
    from_data = _sum(studies, "num_from_data")
    if from_data:
        notes.append(f"transcripts whose sets are the data's own: {from_data:,}")
    return notes


def option_lines(study: Study) -> list[RenderableType]:
    """A study's most frequent sets, and responses with theirs."""
    lines: list[RenderableType] = []
    if study["sets"]:
        shown = "; ".join(f"{_set(options)} {number:,}" for options, number in study["sets"])
        lines.append(Text(f"sets by answers: {shown}"))
    for example in study["option_examples"]:
        head = example["kind"].replace("_", " ")
        lines.append(
            Text.assemble(
                (head, "yellow"),
                f" {_set(example['options'])}: response {example['response_idx']} of participant ",
                visible(example["participant"]),
            )
        )
        lines.append(Text(f"  {visible(example['context'])}"))
    return lines


def _set(options: Sequence[str]) -> str:
    return "{" + ", ".join(map(visible, options)) + "}"


# --- letters


def letters_table(studies: Sequence[Study]) -> Table:
    """Transcripts that can be relabelled, and why the others cannot."""
    reasons = [reason for reason in _REASONS if any(reason in study["refusals"] for study in studies)]
    table = _table("can be\nrelabelled", *(_REASONS[reason] for reason in reasons))

    def cells(some: Sequence[Study]) -> list[str]:
        refused = [sum(study["refusals"].get(reason, 0) for study in some) for reason in reasons]
        return [f"{_sum(some, 'num_relabelled'):,} of {_sum(some, 'num_transcripts'):,}", *map(_count, refused)]

    return _fill(table, studies, cells)


def letters_notes(counts: Mapping[str, Any]) -> list[str]:
    """What the columns mean, and the counts of studies."""
    refused = ", ".join(f"{reason.replace('_', ' ')} {number}" for reason, number in counts["by_refusal"].items())
    return [
        "in transcripts: why option letters cannot be exchanged: fewer than two, or a letter that is also something else",
        f"studies that can be relabelled: {counts['relabelled']} of {counts['studies']}; "
        f"with refusals {counts['with_refusals']}" + (f" ({refused})" if refused else ""),
    ]


def refusal_lines(study: Study) -> list[RenderableType]:
    """The occurrences for which a study's transcripts are refused."""
    return [
        Text.assemble(
            (example["reason"].replace("_", " "), "yellow"),
            f" {example['letter']}: participant {visible(example['participant'])}: {visible(example['context'])}",
        )
        for example in study["refusal_examples"]
    ]
