"""Choice sets found in a transcript alone (PROTOCOL 4, Where the sets come from): `--options auto`.

There are two options, B and E.
You choose <<B>>. …             the slot ("You", "choose"); its labels are B, E and Q; the line above names two
There are three options, B, E, and Q.
You choose <<Q>>. …             the same slot, its set is now B, E, Q
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from psyfast.data.letters import naming_words, single_letters, standing_alone, stands_as_word, without_responses
from psyfast.data.options import OptionSets
from psyfast.data.records import Transcript
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, SourceResponse, find_responses
from psyfast.data.surroundings import surroundings
from psyfast.data.text_lines import TextLines
from psyfast.data.trials import Trials, find_trials

MIN_LABELS, MAX_LABELS = 2, 12
MIN_ANSWERS = 2
"""How often an answer must be given in a slot to be a label of it."""

MIN_SHARE = 0.95
"""Share of a slot's responses that its labels must make up."""

MIN_RESPONSES_A_LABEL = 4

_WHOLE_NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")


@dataclass(frozen=True)
class FoundOptions:
    """Choice sets found in a transcript: one for each response, None where it has none.

    uncertain: responses (by index) whose set the text never names (flag `options_uncertain`).
    """

    sets: OptionSets
    uncertain: tuple[int, ...]


def find_option_sets(transcript: Transcript, trials: Trials | None = None) -> FoundOptions:
    """The choice set of every response, from what is answered in its slot and what the text names.

    trials: of this transcript, where they are known already.
    """
    text = transcript.text
    responses = find_responses(text).responses
    if not responses:
        return FoundOptions((), ())
    lines = TextLines.of(text)
    keys = _slot_keys(text, responses, lines, trials or find_trials(transcript))
    answers = [_answer(text, response) for response in responses]
    given: dict[Hashable, list[str]] = defaultdict(list)
    for key, answer in zip(keys, answers, strict=True):
        given[key].append(answer)
    labels_of = {key: labels for key, of_slot in given.items() if (labels := _labels(of_slot))}
    names = _Names.of(text, responses, frozenset(label for labels in labels_of.values() for label in labels))
    in_force: dict[Hashable, frozenset[str]] = {}
    sets: list[tuple[str, ...] | None] = []
    uncertain = []
    for response_idx, key in enumerate(keys):
        labels = labels_of.get(key)
        if labels is None:
            sets.append(None)
            continue
        named = names.narrowed(labels, *_window(responses, lines, response_idx))
        if named is not None:
            in_force[key] = named
        options = in_force.get(key, labels)
        sets.append(in_order(options))
        if not options <= names.everywhere:
            uncertain.append(response_idx)
    return FoundOptions(tuple(sets), tuple(uncertain))


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Options in the order in which a set has them: numbers by value, then words."""
    return tuple(sorted(labels, key=lambda label: (0, int(label), "") if label.isdecimal() else (1, 0, label)))


def _slot_keys(
    text: str, responses: Sequence[SourceResponse], lines: TextLines, trials: Trials
) -> list[tuple[tuple[str, ...], str]]:
    """What tells slots apart: the words before; where a trial has responses on several lines, the word after too."""
    lines_of_trial: dict[int, set[int]] = defaultdict(set)
    for response, trial_idx in zip(responses, trials.trial_of_response, strict=True):
        lines_of_trial[trial_idx].add(lines.of_response(response)[0])
    has_several = any(len(found) > 1 for found in lines_of_trial.values())
    return [(before, after if has_several else "") for before, after in surroundings(text, responses)]


def _answer(text: str, response: SourceResponse) -> str:
    start, stop = response.trimmed(text)
    return text[start:stop]


def _labels(answers: Sequence[str]) -> frozenset[str] | None:
    """The labels of a slot, None where they are no choice set. Responses without an answer do not count."""
    counts = Counter(filter(None, answers))
    labels = {answer for answer, count in counts.items() if count >= MIN_ANSWERS}
    with_digits = {label for label in labels if any(map(str.isdigit, label))}
    if not _are_consecutive(with_digits):
        labels -= with_digits
    num_responses = counts.total()
    num_labelled = sum(counts[label] for label in labels)
    if not MIN_LABELS <= len(labels) <= MAX_LABELS or num_labelled < MIN_SHARE * num_responses:
        return None
    return frozenset(labels) if num_responses >= MIN_RESPONSES_A_LABEL * len(labels) else None


def _are_consecutive(labels: Iterable[str]) -> bool:
    """Whether labels are whole numbers one after the other, from 0 or 1."""
    labels = list(labels)
    if not all(_WHOLE_NUMBER.fullmatch(label) for label in labels):
        return False
    numbers = sorted(map(int, labels))
    return not numbers or (numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers))))


def _window(responses: Sequence[SourceResponse], lines: TextLines, response_idx: int) -> tuple[int, int]:
    """What was said since the response before: from the end of its line, or from itself where both share a line."""
    stop = responses[response_idx].char_start - len(OPEN_MARKER)
    if response_idx == 0:
        return 0, stop
    before = responses[response_idx - 1]
    line_stop = lines.stop(lines.of_response(before)[1])
    own_stop = before.char_stop + (0 if before.unbalanced else len(CLOSE_MARKER))
    return (line_stop if line_stop <= stop else own_stop), stop


@dataclass(frozen=True)
class _Names:
    """Where labels are named in a text, outside of its responses. everywhere: all that are named anywhere."""

    text: str
    letters: frozenset[str]
    naming: frozenset[str]
    everywhere: frozenset[str]

    @classmethod
    def of(cls, text: str, responses: Sequence[SourceResponse], labels: frozenset[str]) -> _Names:
        outside = without_responses(text, responses)
        letters = single_letters(labels)
        found = frozenset(match.group() for match in standing_alone(labels).finditer(outside)) if labels else labels
        return cls(outside, letters, naming_words(text, responses, letters), found)

    def narrowed(self, labels: frozenset[str], start: int, stop: int) -> frozenset[str] | None:
        """The labels that the nearest line with two of them names, else the part as a whole; None where it names fewer."""
        whole = self._named(labels, start, stop)
        if whole is None:
            return None
        line_stop = stop
        while line_stop > start:
            line_start = max(start, self.text.rfind("\n", start, line_stop - 1) + 1)
            on_line = self._named(labels, line_start, line_stop)
            if on_line is not None:
                return on_line
            line_stop = line_start
        return whole

    def _named(self, labels: frozenset[str], start: int, stop: int) -> frozenset[str] | None:
        """The labels that a part of the text names; None where it names fewer than two.

        A, I and a do not make two where they may be words, but beside two others they may be labels, and stay.
        """
        sure, all_found = set(), set()
        for found in standing_alone(labels).finditer(self.text, start, stop):
            all_found.add(found.group())
            if not self._is_word(found):
                sure.add(found.group())
        return frozenset(all_found) if len(sure) >= MIN_LABELS else None

    def _is_word(self, found: re.Match[str]) -> bool:
        """Whether a label is one letter, and an article or a pronoun here; `A lot` is neither."""
        return len(found.group()) == 1 and stands_as_word(self.text, found.start(), self.letters, self.naming)
