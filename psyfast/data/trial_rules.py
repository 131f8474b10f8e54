"""How trials are found in a text that does not say where they are (PROTOCOL 7, Trials)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import median
from typing import Literal

from psyfast.data.responses import SourceResponse
from psyfast.data.surroundings import surroundings
from psyfast.data.text_lines import TextLines

MAX_MEDIAN_BLOCK, MAX_BLOCK = 4, 8
"""Responses that a block between blank lines may hold to be a trial: in the median, and at most."""

MAX_CYCLE, MIN_CYCLE_SHARE = 8, 0.8
"""Responses of a trial of several lines at most, and the share of the trials that must have the same number."""


def cut_by_rule(
    responses: Sequence[SourceResponse], lines: TextLines
) -> tuple[Literal["blocks", "returns", "lines"], list[range]]:
    """The rule that decided, and the responses of each trial. Responses on one line always belong together."""
    groups = lines.groups(responses)
    blocks = _joined(groups, _blocks(responses, lines, groups))
    sizes = list(map(len, blocks))
    if len(blocks) > 1 and median(sizes) <= MAX_MEDIAN_BLOCK and max(sizes) <= MAX_BLOCK:
        return "blocks", blocks
    cycles = _joined(groups, _returns(responses, lines, groups))
    length, count = Counter(map(len, cycles)).most_common(1)[0]
    if len(groups[0]) < length <= MAX_CYCLE and count >= MIN_CYCLE_SHARE * len(cycles):
        return "returns", cycles
    return "lines", groups


def _joined(groups: Sequence[range], parts: Sequence[int]) -> list[range]:
    """Groups of the same part become one; `parts` never decreases."""
    by_part = groupby(zip(groups, parts, strict=True), key=lambda pair: pair[1])
    joined = []
    for _, members in by_part:
        ranges = [group for group, _ in members]
        joined.append(range(ranges[0].start, ranges[-1].stop))
    return joined


def _blocks(responses: Sequence[SourceResponse], lines: TextLines, groups: Sequence[range]) -> list[int]:
    """For each group the number of blank lines before it."""
    num_blank, line, found = 0, 0, []
    for group in groups:
        own = lines.of_response(responses[group.start])[0]
        num_blank += sum(lines.is_blank(between) for between in range(line, own))
        line = own
        found.append(num_blank)
    return found


def _returns(responses: Sequence[SourceResponse], lines: TextLines, groups: Sequence[range]) -> list[int]:
    """For each group how often the first response's surroundings have come back at the head of a line."""
    heads = surroundings(lines.text, [responses[group.start] for group in groups])
    num_returns, found = 0, []
    for head in heads:
        num_returns += head == heads[0]
        found.append(num_returns)
    return found
