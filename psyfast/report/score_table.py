"""The table that `psyfast score` ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from psyfast.metrics.summary import StudySummary

DASH = "–"


def score_table(rows: Sequence[StudySummary]) -> Table:
    """One line a study, one over all; the columns of simulated data and of options only where there are any.

    Several models or conditions have a heading each.
    """
    headings = _headings(rows)
    with_best = any(row.best_nats is not None for row in rows)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("experiment", overflow="fold")
    table.add_column("re-\nsponses", justify="right")
    table.add_column("NLL\nnats", justify="right")
    table.add_column("guess\nnats", justify="right")
    if with_best:
        table.add_column("best\nnats", justify="right")
    table.add_column("pseudo-\nR²", justify="right")
    table.add_column("tokens\n/s", justify="right")
    last = None
    for row in rows:
        heading = headings[row.model_id, row.condition]
        if heading and heading != last:
            table.add_row(heading, style="bold")
        last = heading
        cells = [
            _scored(row),
            _number(row.mean_nll_nats),
            _number(row.guess_nats),
            *([_number(row.best_nats)] if with_best else []),
            _number(row.pseudo_r2),
            DASH if row.tok_per_s is None else f"{row.tok_per_s:,.0f}",
        ]
        name = ("  " if heading else "") + (row.study or "all (mean)")
        table.add_row(name, *cells, style="bold" if row.study is None else None, end_section=row.study is None)
    return table


def _headings(rows: Sequence[StudySummary]) -> dict[tuple[str, str], str]:
    """What tells a model's condition from the others: the model, the condition, both, or nothing where there is one."""
    several_models = len({row.model_id for row in rows}) > 1
    several_conditions = len({row.condition for row in rows}) > 1
    return {
        (row.model_id, row.condition): ", ".join([row.model_id] * several_models + [row.condition] * several_conditions)
        for row in rows
    }


WARNING_TEXTS = {
    "missing_study": "transcripts without a study, which got the name of their file or folder",
    "missing_experiment": "transcripts without an experiment, which got their study's name",
    "missing_participant": "transcripts without a participant, which got their row's number",
    "rt_count_mismatch": "transcripts whose reaction times are not one a response, and were left out",
    "options_count_mismatch": "transcripts whose option sets are not one a response, and were left out",
    "trial_count_mismatch": "transcripts whose trial numbers are not one a response, and were left out",
    "no_responses": "transcripts without a marked response",
    "unbalanced_marker": "markers << without their >>",
    "stray_closer": "markers >> without their <<, taken as text",
}


def warning_text(kind: str) -> str:
    """What a kind of warning of the manifest means."""
    return WARNING_TEXTS.get(kind, kind.replace("_", " "))


LEFT_OUT_TEXTS = {
    "no_persona": "no persona field known",
    "no_other_persona": "no other persona in the study",
    "no_single_letter": "no response of one letter A–Z",
    "no_trials": "no trials",
    "no_instructions": "no text before the first trial",
    "no_responses": "no response to put into a conversation",
    "template_refused": "the chat template refuses the conversation",
    "refused_too_few_letters": "fewer than two option letters",
    "refused_word": "an option letter stands as a word",
    "refused_after_article": "an option letter after a or an",
    "refused_apostrophe": "an option letter with an apostrophe",
    "refused_abbreviation": "an option letter in an abbreviation",
    "refused_compound": "an option letter in a compound",
    "refused_other_case": "an option letter in the other case",
}


def left_out_notes(conditions: Mapping[str, Any], num_transcripts: int) -> list[str]:
    """Who does not take part in a condition and why, a sentence each; conditions: those of the manifest."""
    notes = []
    for name, found in conditions.items():
        by_template = found.get("by_template")
        counts = [found] if by_template is None else list(by_template.values())
        for count in counts:
            reasons = [
                f"{LEFT_OUT_TEXTS.get(reason, reason.replace('_', ' '))}: {number:,}"
                for reason, number in count["left_out"].items()
            ]
            if reasons:
                where = "" if len(counts) == 1 else " under one of the chat templates"
                notes.append(
                    f"{name}: {count['num_transcripts']:,} of {num_transcripts:,} transcripts take part{where}; "
                    f"{'; '.join(reasons)}"
                )
    return notes


def footnotes(rows: Sequence[StudySummary]) -> list[str]:
    """What the table's figures leave out, a sentence each."""
    notes = []
    if any(row.num_scored < row.num_responses for row in rows):
        notes.append("responses: scored of marked where not all were scored; the flags in the results say why")
    outside = dict.fromkeys(row.study for row in rows if row.study and row.num_outside_options)
    if outside:
        notes.append(
            f"responses that are none of their options, left out of guess and pseudo-R², in: {', '.join(outside)}"
        )
    partial = dict.fromkeys(row.study for row in rows if row.study and 0 < row.num_with_options < 0.95 * row.num_scored)
    if partial:
        notes.append(f"guess and pseudo-R² rest on fewer than 95 % of the responses in: {', '.join(partial)}")
    if any(row.best_nats is not None for row in rows):
        notes.append("best: the NLL of the probabilities that generated the data, which no model can beat on average")
    return notes


def _scored(row: StudySummary) -> str:
    if row.num_scored == row.num_responses:
        return f"{row.num_responses:,}"
    return f"{row.num_scored:,} of {row.num_responses:,}"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3f}"
