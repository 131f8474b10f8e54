"""What the text alone decides, study by study: trials, choice sets and letters that could be others.

What is counted here is what conditions and `--options auto` work with; the examples are for a scientist to check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from psyfast.data.choice_sets import with_choice_sets
from psyfast.data.records import Transcript
from psyfast.data.relabel import Refused, letter_positions, option_letters
from psyfast.data.responses import CLOSE_MARKER, OPEN_MARKER, SourceResponse, find_responses
from psyfast.data.trials import CharSpan, Trials, find_trials

SHOWN_CHARS, CONTEXT_CHARS, SHOWN_TRIALS, SHOWN_SETS = 160, 60, 2, 5
"""What examples show: characters of a text at most, and before a response; trials of a transcript; sets of a study."""


@dataclass(frozen=True)
class TrialExample:
    """How one transcript is divided: the end of its instructions, its first heading, its first trials."""

    experiment: str
    participant: str
    rule: str
    num_trials: int
    instructions_end: str
    heading: str | None
    trials: tuple[str, ...]


@dataclass(frozen=True)
class OptionExample:
    """One response and its set; kind is `set`, `options_uncertain` or `not_in_options`. context ends with its markers."""

    kind: str
    experiment: str
    participant: str
    response_idx: int
    options: tuple[str, ...]
    context: str


@dataclass(frozen=True)
class RefusalExample:
    """The occurrence of a letter for which a transcript is not relabelled; None where it has too few letters."""

    reason: str
    experiment: str
    participant: str
    letter: str | None
    context: str | None


@dataclass(frozen=True)
class StudyText:
    """Counts of one study.

    num_answers: responses with an answer, which shares of responses are of. rules: transcripts by what decided on
    their trials. trial_sizes: trials by their number of responses. num_with_headings: transcripts whose blocks have
    headings. num_from_data: transcripts with sets of their own. num_with_set: answers that have a set, num_uncertain
    and num_outside those of them whose set is never named, or does not hold the answer. num_participants_with_set:
    transcripts with a set for any answer. num_always_same: transcripts without one whose answers are all the same.
    sets: the most frequent ones, with their number of answers. refusals: transcripts by why they cannot be relabelled.
    """

    study: str
    num_transcripts: int
    num_responses: int
    num_answers: int
    rules: Mapping[str, int]
    num_trials: int
    trial_sizes: Mapping[int, int]
    num_with_headings: int
    num_from_data: int
    num_with_set: int
    num_participants_with_set: int
    num_uncertain: int
    num_outside: int
    num_always_same: int
    sets: tuple[tuple[tuple[str, ...], int], ...]
    num_relabelled: int
    refusals: Mapping[str, int]
    trial_examples: tuple[TrialExample, ...]
    option_examples: tuple[OptionExample, ...]
    refusal_examples: tuple[RefusalExample, ...]


@dataclass(frozen=True)
class TextAudit:
    """What was found, study by study in the order of the data."""

    studies: tuple[StudyText, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, with the counts of studies; `psyfast.report.text_audit_table` renders this form."""
        studies = self.studies
        counts = {
            "studies": len(studies),
            "with_trials": sum(study.num_trials > study.num_transcripts for study in studies),
            "with_headings": sum(study.num_with_headings > 0 for study in studies),
            "with_sets": sum(study.num_with_set > 0 for study in studies),
            "with_uncertain_sets": sum(study.num_uncertain > 0 for study in studies),
            "with_sets_for_95_percent": sum(study.num_with_set >= 0.95 * study.num_answers > 0 for study in studies),
            "relabelled": sum(study.num_relabelled > 0 for study in studies),
            "with_refusals": sum(bool(study.refusals) for study in studies),
            "by_rule": dict(sum((Counter(study.rules.keys()) for study in studies), Counter[str]())),
            "by_refusal": dict(sum((Counter(study.refusals.keys()) for study in studies), Counter[str]())),
        }
        return {"num_studies": counts, "studies": [asdict(study) for study in studies]}


def audit_text(transcripts: Iterable[Transcript], *, num_examples: int = 2) -> TextAudit:
    """Find trials, choice sets and letters of transcripts.

    Sets are those of `--options auto`: the data's own where they bring some. num_examples: for each study and finding.
    """
    by_study: dict[str, _Sums] = {}
    for transcript in transcripts:
        by_study.setdefault(transcript.study, _Sums()).add(transcript, num_examples)
    return TextAudit(tuple(sums.of_study(study) for study, sums in by_study.items()))


@dataclass
class _Sums:
    """Running counts of one study."""

    counts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    trial_sizes: Counter[int] = field(default_factory=Counter)
    sets: Counter[tuple[str, ...]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    trial_examples: list[TrialExample] = field(default_factory=list)
    option_examples: list[OptionExample] = field(default_factory=list)
    refusal_examples: list[RefusalExample] = field(default_factory=list)

    def add(self, transcript: Transcript, num_examples: int) -> None:
        responses = find_responses(transcript.text).responses
        self.counts.update(num_transcripts=1, num_responses=len(responses))
        trials = find_trials(transcript)
        self._add_trials(transcript, trials, num_examples)
        chosen = with_choice_sets(transcript, "auto")
        self.counts["num_from_data"] += transcript.options is not None
        self._add_options(chosen, responses, num_examples)
        self._add_letters(chosen, num_examples)

    def _add_trials(self, transcript: Transcript, trials: Trials, num_examples: int) -> None:
        self.rules[trials.rule] += 1
        self.trial_sizes.update(Counter(trials.trial_of_response).values())
        self.counts.update(num_trials=trials.num_trials, num_with_headings=any(trials.headings))
        if len(self.trial_examples) < num_examples and trials.num_trials:
            self.trial_examples.append(_trial_example(transcript, trials))

    def _add_options(self, transcript: Transcript, responses: Sequence[SourceResponse], num_examples: int) -> None:
        text = transcript.text
        answers = [text[slice(*response.trimmed(text))] for response in responses]
        sets = transcript.options or (None,) * len(answers)
        uncertain = frozenset(transcript.uncertain_options)
        given = [(idx, answer, one) for idx, (answer, one) in enumerate(zip(answers, sets, strict=True)) if answer]
        with_set = [(idx, answer, one) for idx, answer, one in given if one is not None]
        self.sets.update(one for _, _, one in with_set)
        self.counts.update(
            num_answers=len(given),
            num_with_set=len(with_set),
            num_participants_with_set=bool(with_set),
            num_uncertain=sum(idx in uncertain for idx, _, _ in with_set),
            num_outside=sum(answer not in one for _, answer, one in with_set),
            num_always_same=not with_set and len(given) > 1 and len({answer for _, answer, _ in given}) == 1,
        )
        for idx, answer, one in with_set:
            kind = "not_in_options" if answer not in one else "options_uncertain" if idx in uncertain else "set"
            self._show_option(kind, transcript, idx, responses[idx], one, num_examples)

    def _show_option(
        self,
        kind: str,
        transcript: Transcript,
        response_idx: int,
        response: SourceResponse,
        options: tuple[str, ...],
        num_examples: int,
    ) -> None:
        """Keep an example: of each kind the first, and of sets those that differ."""
        shown = [example for example in self.option_examples if example.kind == kind]
        if len(shown) >= num_examples or (kind != "not_in_options" and any(options == ex.options for ex in shown)):
            return
        start = response.char_start - len(OPEN_MARKER)
        context = transcript.text[max(0, start - CONTEXT_CHARS) : response.char_stop + len(CLOSE_MARKER)]
        self.option_examples.append(
            OptionExample(kind, transcript.experiment, transcript.participant, response_idx, options, context)
        )

    def _add_letters(self, transcript: Transcript, num_examples: int) -> None:
        found = letter_positions(transcript, option_letters(transcript))
        if not isinstance(found, Refused):
            self.counts["num_relabelled"] += 1
            return
        self.refusals[found.reason] += 1
        if self.refusals[found.reason] <= num_examples and found.char_idx is not None:
            place = found.char_idx
            context = transcript.text[max(0, place - CONTEXT_CHARS // 2) : place + CONTEXT_CHARS // 2]
            self.refusal_examples.append(
                RefusalExample(found.reason, transcript.experiment, transcript.participant, found.letter, context)
            )

    def of_study(self, study: str) -> StudyText:
        count = self.counts
        names = (
            "num_transcripts", "num_responses", "num_answers", "num_trials", "num_with_headings", "num_from_data",
            "num_with_set", "num_participants_with_set", "num_uncertain", "num_outside", "num_always_same",
            "num_relabelled",
        )  # fmt: skip
        return StudyText(
            study=study,
            rules=dict(self.rules.most_common()),
            trial_sizes=dict(self.trial_sizes.most_common()),
            sets=tuple(self.sets.most_common(SHOWN_SETS)),
            refusals=dict(self.refusals.most_common()),
            trial_examples=tuple(self.trial_examples),
            option_examples=tuple(sorted(self.option_examples, key=lambda example: _KINDS.index(example.kind))),
            refusal_examples=tuple(self.refusal_examples),
            **{name: count[name] for name in names},
        )


_KINDS = ("set", "options_uncertain", "not_in_options")


def _trial_example(transcript: Transcript, trials: Trials) -> TrialExample:
    text = transcript.text
    heading = next((span for span in trials.headings if span is not None), None)
    shown: Iterator[CharSpan] = islice(trials.char_spans, SHOWN_TRIALS)
    return TrialExample(
        experiment=transcript.experiment,
        participant=transcript.participant,
        rule=trials.rule,
        num_trials=trials.num_trials,
        instructions_end=_end(text[slice(*trials.instructions)], CONTEXT_CHARS),
        heading=_middle(text[slice(*heading)]) if heading is not None else None,
        trials=tuple(_middle(text[slice(*span)]) for span in shown),
    )


def _end(text: str, num_chars: int) -> str:
    """The end of a text, with a sign of what is left out."""
    return text if len(text) <= num_chars else "…" + text[len(text) - num_chars :]


def _middle(text: str) -> str:
    """A text with its middle left out where it is long."""
    half = SHOWN_CHARS // 2
    return text if len(text) <= SHOWN_CHARS else text[:half] + " … " + text[-half:]
