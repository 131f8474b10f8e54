"""Which trial each response belongs to, and what text belongs to each trial (PROTOCOL 7, Trials).

    instructions    Win points.  Press J or F.
    heading         Block 1:
    trial 0         You press <<J>>.
    trial 1         You win.                     what follows a trial's last line is known to the next
                    You press <<F>>.
    trial 2         You lose.
                                                 a blank line; the heading of block 2 stands in its first trial
                    Block 2:
                    You press <<F>>.

A text is its instructions, the heading of its first block, its trials and what follows the last one, in this order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, SupportsFloat, get_args

from psyfast.data.records import Transcript
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, SourceResponse, find_responses
from psyfast.data.text_lines import TextLines
from psyfast.data.trial_rules import cut_by_rule
from psyfast.errors import DataError

CharSpan = tuple[int, int]

TrialRule = Literal["field", "callable", "blocks", "returns", "lines"]
"""What decided: the data's field `trial`; a function of the caller's; blocks between blank lines; lines up to the next
return of the first response's surroundings; each line with a response.
"""

TRIAL_RULES: tuple[TrialRule, ...] = get_args(TrialRule)

TrialNumbers = Callable[[Transcript], Sequence[float]]
"""One number for each response of a transcript: neighbours with the same number belong to one trial."""


@dataclass(frozen=True)
class Trials:
    """A transcript's trials, in order. Spans are of its source text.

    trial_of_response: for every response, its trial, from 0 on. char_spans: of the trials; they follow each other
    without gaps, and each ends with the line of its last response. instructions: what stands before the first trial,
    and before its block's heading. headings: for every trial, that of its block; None where it has none. The heading
    of the first block stands between instructions and first trial, or in the trial that took it; that of a later
    block in its first trial.
    """

    rule: TrialRule
    trial_of_response: tuple[int, ...]
    char_spans: tuple[CharSpan, ...]
    instructions: CharSpan
    headings: tuple[CharSpan | None, ...]

    @property
    def num_trials(self) -> int:
        """How many trials there are."""
        return len(self.char_spans)

    def shown_with(self, first_trial: int, last_trial: int) -> tuple[CharSpan, ...]:
        """Spans to show, in order, where only the trials [first_trial, last_trial] are to be seen.

        Instructions, the heading of the last trial's block, the trials; a heading that stands in one of the trials is
        not shown twice, and empty spans are left out.
        """
        shown = (self.char_spans[first_trial][0], self.char_spans[last_trial][1])
        heading = self.headings[last_trial]
        if heading is not None and shown[0] <= heading[0]:
            heading = None
        return tuple(span for span in (self.instructions, heading, shown) if span is not None and span[0] < span[1])


def find_trials(transcript: Transcript, decide: TrialNumbers | None = None) -> Trials:
    """The trials of a transcript: by `decide`, else by its field `trial`, else by the rules.

    Raises DataError where `decide` does not give one finite number a response.
    """
    text = transcript.text
    responses = find_responses(text).responses
    if not responses:
        return Trials("lines", (), (), (0, len(text)), ())
    lines = TextLines.of(text)
    rule, trial_of_response = _assign(transcript, responses, lines, decide)
    first_of = [next(members)[0] for _, members in groupby(enumerate(trial_of_response), key=lambda pair: pair[1])]
    stops = _stops(responses, lines, first_of)
    gaps = _gaps(responses, lines, first_of, stops)
    first_line = gaps[0].stop - _num_taken(lines, gaps[0], gaps[1:], _opening_words(lines, gaps, stops))
    starts = [lines.starts[first_line], *stops[:-1]]
    spans = tuple(zip(starts, stops, strict=True))
    headings = (None,) * len(spans) if rule == "blocks" else _headings(lines, gaps, first_line)
    instructions_stop = starts[0] if headings[0] is None else min(headings[0][0], starts[0])
    return Trials(rule, trial_of_response, spans, (0, instructions_stop), headings)


# --- which trial


def _assign(
    transcript: Transcript, responses: Sequence[SourceResponse], lines: TextLines, decide: TrialNumbers | None
) -> tuple[TrialRule, tuple[int, ...]]:
    if decide is not None:
        return "callable", _runs(_checked(decide(transcript), transcript))
    if transcript.trials is not None:
        return "field", _runs(transcript.trials)
    rule, groups = cut_by_rule(responses, lines)
    return rule, tuple(trial_idx for trial_idx, members in enumerate(groups) for _ in members)


def _checked(numbers: object, transcript: Transcript) -> list[float]:
    where = f"{transcript.source_file}, row {transcript.source_row}: the function for trials"
    if isinstance(numbers, (str, bytes, bytearray, Mapping, Set)) or not isinstance(numbers, Iterable):
        raise DataError(f"{where} returned {numbers!r}, expected a list of numbers, one a response")
    checked = [_number(item) for item in numbers]
    if len(checked) != transcript.num_responses:
        raise DataError(
            f"{where} returned {len(checked)} numbers, expected one for each of {transcript.num_responses} responses"
        )
    if not all(map(math.isfinite, checked)):
        raise DataError(f"{where} returned something else than finite numbers (response {_first_bad(checked)})")
    return checked


def _number(item: object) -> float:
    """The item as a number, NaN where it is none; numbers of other libraries count."""
    if isinstance(item, (bool, str, bytes)) or not isinstance(item, SupportsFloat):
        return math.nan
    try:
        return float(item)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _first_bad(numbers: Sequence[float]) -> int:
    return next(idx for idx, number in enumerate(numbers) if not math.isfinite(number))


def _runs(numbers: Iterable[float]) -> tuple[int, ...]:
    """Ordinals of runs of equal numbers: trials may be counted anew in every block."""
    return tuple(idx for idx, (_, run) in enumerate(groupby(numbers)) for _ in run)


# --- what text


def _stops(responses: Sequence[SourceResponse], lines: TextLines, first_of: Sequence[int]) -> list[int]:
    """Where each trial ends: with the line of its last response, and before the next trial's first marker."""
    stops = []
    for first_of_next in [*first_of[1:], len(responses)]:
        last = responses[first_of_next - 1]
        stop = lines.stop(lines.of_response(last)[1])
        if first_of_next < len(responses):
            marker = responses[first_of_next].char_start - len(OPEN_MARKER)
            if marker < stop:  # two trials on one line: what follows the response's full stop is known to the next
                stop = last.char_stop + (0 if last.unbalanced else len(CLOSE_MARKER))
                while stop < marker and not lines.text[stop].isspace():
                    stop += 1
        stops.append(stop)
    return stops


def _gaps(
    responses: Sequence[SourceResponse], lines: TextLines, first_of: Sequence[int], stops: Sequence[int]
) -> list[range]:
    """For each trial the lines between the trial before it and the line of its own first response."""
    gaps = []
    for start, first in zip([0, *stops[:-1]], first_of, strict=True):
        own = lines.of_response(responses[first])[0]
        line = lines.at(start)
        gaps.append(range(min(line + (lines.starts[line] < start), own), own))
    return gaps


def _opening_words(lines: TextLines, gaps: Sequence[range], stops: Sequence[int]) -> set[str | None]:
    """First words of the lines of all trials but the first."""
    if len(gaps) < 2:
        return set()
    later = range(gaps[1].start, lines.at(stops[-1] - 1) + 1)
    return {lines.first_word(line) for line in later} - {None}


def _num_taken(lines: TextLines, before: range, later: Sequence[range], openings: set[str | None]) -> int:
    """How many lines at the end of `before` are taken: as many as most of `later` have.

    Less those at their top that open with none of `openings`. Of numbers equally frequent, the smallest.
    """
    if not later:
        return 0
    counts = Counter(len(one) for one in later)
    num_taken = min(len(before), min(counts, key=lambda count: (-counts[count], count)))
    while num_taken and lines.first_word(before.stop - num_taken) not in openings:
        num_taken -= 1
    return num_taken


def _headings(lines: TextLines, gaps: Sequence[range], first_line: int) -> tuple[CharSpan | None, ...]:
    """For every trial the lines between a blank line and its block's first trial.

    A block's first trial takes as many lines of its own as the first trial of all. The first block's heading is told from the
    instructions by what later headings look like: lines at its top whose first word opens no line of a later one are
    instructions.
    """
    num_own = _num_own(lines, gaps, first_line)
    later = [_heading_lines(lines, gap, num_own) for gap in gaps[1:]]
    openings = {lines.first_word(line) for heading in later if heading for line in heading} - {None}
    current = _first_heading(lines, first_line, openings)
    own_start = gaps[0].stop - num_own
    if current is None and openings and first_line < own_start:  # the first trial took its block's heading
        current = (lines.starts[first_line], lines.starts[own_start])
    headings = [current]
    for heading in later:
        if heading is not None:
            current = (lines.starts[heading.start], lines.stop(heading.stop - 1)) if heading else None
        headings.append(current)
    return tuple(headings)


def _num_own(lines: TextLines, gaps: Sequence[range], first_line: int) -> int:
    """How many of the lines that the first trial took are its own, and no heading: those at the bottom that open like
    a line before the response of a trial that begins no block.
    """
    openings = {lines.first_word(line) for gap in gaps[1:] if not any(map(lines.is_blank, gap)) for line in gap} - {
        None
    }
    line = gaps[0].stop
    while line > first_line and lines.first_word(line - 1) in openings:
        line -= 1
    return gaps[0].stop - line


def _first_heading(lines: TextLines, first_line: int, openings: set[str | None]) -> CharSpan | None:
    """The last lines without a blank one between them before the first trial, as far as they are a heading."""
    stop = first_line
    while stop and lines.is_blank(stop - 1):
        stop -= 1
    first = stop
    while first and not lines.is_blank(first - 1):
        first -= 1
    if first == 0:
        return None
    while first < stop and lines.first_word(first) not in openings:
        first += 1
    return (lines.starts[first], lines.starts[first_line]) if first < stop else None


def _heading_lines(lines: TextLines, gap: range, num_own: int) -> range | None:
    """The lines from a gap's first blank line to its trial, blank ones at both ends aside; None without a blank line."""
    blank = next((line for line in gap if lines.is_blank(line)), None)
    if blank is None:
        return None
    first, stop = blank, max(blank, gap.stop - num_own)
    while first < stop and lines.is_blank(first):
        first += 1
    while stop > first and lines.is_blank(stop - 1):
        stop -= 1
    return range(first, stop)
