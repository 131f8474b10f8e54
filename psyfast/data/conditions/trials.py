"""`no-instructions`, `no-history` and `history=K`: less of what the participant had read and done (PROTOCOL 7, Trials).

    plain              instructions  heading 1  trial 0  trial 1  heading 2  trial 2  trial 3
    no-instructions                  heading 1  trial 0  trial 1  heading 2  trial 2  trial 3
    no-history         instructions  heading 1  trial 0
                       instructions  heading 1  trial 1
                       instructions  heading 2  trial 2
                       instructions  heading 2  trial 3
    history=1          instructions  heading 1  trial 0  trial 1
                       instructions  heading 1  trial 1  heading 2  trial 2
                       instructions  heading 2  trial 2  trial 3

Where several trials stand in one text, those before its last are its past; the first text of all scores whatever it has.
"""

from __future__ import annotations

from collections import defaultdict

from psyfast.data.conditions.condition import Setting
from psyfast.data.records import Transcript
from psyfast.data.rendering import LeftOut, Rendering, Source
from psyfast.data.trials import find_trials


def render_no_instructions(transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """The source from the first trial, or its block's heading, on."""
    trials = find_trials(transcript, setting.decide_trials)
    if not trials.num_trials:
        return LeftOut("no_trials")
    start = trials.instructions[1]
    if not transcript.text[:start].strip():
        return LeftOut("no_instructions")
    return Rendering((Source(transcript).join([(start, len(transcript.text))]),), details={"trial_rule": trials.rule})


def render_history(num_before: int, transcript: Transcript, setting: Setting) -> Rendering | LeftOut:
    """For each trial the instructions, its block's heading, the `num_before` trials before it and itself."""
    trials = find_trials(transcript, setting.decide_trials)
    if not trials.num_trials:
        return LeftOut("no_trials")
    source = Source(transcript)
    responses_of: dict[int, list[int]] = defaultdict(list)
    for response_idx, trial_idx in enumerate(trials.trial_of_response):
        responses_of[trial_idx].append(response_idx)
    last_of_first = min(num_before, trials.num_trials - 1)
    texts = [source.join([(0, trials.char_spans[last_of_first][1])])]
    texts += [
        source.join(trials.shown_with(trial_idx - num_before, trial_idx), scored=frozenset(responses_of[trial_idx]))
        for trial_idx in range(last_of_first + 1, trials.num_trials)
    ]
    return Rendering(tuple(texts), details={"trial_rule": trials.rule, "num_trials": trials.num_trials})
