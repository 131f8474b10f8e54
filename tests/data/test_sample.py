"""The embedded sample: its format, its determinism, and that its participants choose as their models say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psyfast.data.records import Transcript
from psyfast.data.responses import find_responses
from psyfast.data.sample import true_nll, write_sample
from psyfast.data.sample_tasks import (
    COMMON_WORDS,
    RARE_WORDS,
    TASKS,
    Draws,
    Session,
    bandit_session,
    lexical_session,
    pseudoword,
    risky_session,
    subjective_value,
    weighted_probability,
)
from psyfast.data.transcripts import ReadOptions, TranscriptReader
from psyfast.errors import UsageError

LN_2 = math.log(2.0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[TranscriptReader, list[Transcript]]:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    reader = TranscriptReader(folder)
    return reader, list(reader)


@pytest.fixture(scope="module")
def sessions() -> dict[str, list[Session]]:
    """Sixty participants of a hundred trials in each task: 18,000 responses."""
    return {
        study: [simulate(Draws(11, study_idx, participant), 100) for participant in range(60)]
        for study_idx, (study, simulate) in enumerate(TASKS.items())
    }


def pooled(sessions: list[Session], name: str) -> Any:
    return np.concatenate([np.asarray(getattr(session, name), dtype=float) for session in sessions])


# --- format


def test_the_demo_reads_without_a_warning(demo: tuple[TranscriptReader, list[Transcript]]) -> None:
    reader, transcripts = demo
    assert not reader.report.warnings
    assert {transcript.study for transcript in transcripts} == set(TASKS)
    assert len(transcripts) == 12


def test_the_demo_has_its_size(demo: tuple[TranscriptReader, list[Transcript]]) -> None:
    _, transcripts = demo
    assert 450 <= sum(transcript.num_responses for transcript in transcripts) <= 600
    # These texts are all keys, digits and short words: about 2.9 characters a token (measured, two tokenizers).
    num_tokens = sum(len(transcript.text) for transcript in transcripts) / 2.9
    assert 8_500 <= num_tokens <= 12_000
    assert all(400 <= len(transcript.text) / 2.9 <= 1_500 for transcript in transcripts)


def test_every_row_is_whole(demo: tuple[TranscriptReader, list[Transcript]]) -> None:
    for transcript in demo[1]:
        nll_nats = true_nll(transcript.extra)
        assert nll_nats is not None
        assert transcript.rts_ms is not None
        assert transcript.options is not None
        assert len(nll_nats) == len(transcript.rts_ms) == len(transcript.options) == transcript.num_responses
        assert all(rt_ms is not None and 150 < rt_ms < 20_000 for rt_ms in transcript.rts_ms)
        assert {"age", "gender", "nationality"} <= set(transcript.persona)
        for response, options in zip(find_responses(transcript.text).responses, transcript.options, strict=True):
            assert options is not None
            assert transcript.text[response.char_start : response.char_stop] in options
        for key in transcript.options[0] or ():
            assert key in transcript.text.partition("\n\n")[0], "the instructions name the keys"


def test_metadata_and_option_forms_vary(demo: tuple[TranscriptReader, list[Transcript]]) -> None:
    _, transcripts = demo
    with_anxiety = [transcript for transcript in transcripts if "STAI-T" in transcript.persona]
    assert 0 < len(with_anxiety) < len(transcripts)
    assert len({transcript.options[0] for transcript in transcripts if transcript.options}) > 6


def test_both_forms_of_options_are_written(tmp_path: Path) -> None:
    forms = set()
    for path in write_sample(tmp_path, size="tiny"):
        forms |= {isinstance(json.loads(line)["options"][0], list) for line in path.read_text("utf-8").splitlines()}
    assert forms == {True, False}


# --- determinism


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_sample(tmp_path / "a", seed=3)]
    again = [path.read_bytes() for path in write_sample(tmp_path / "b", seed=3)]
    other = [path.read_bytes() for path in write_sample(tmp_path / "c", seed=4)]
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_more_participants_leave_the_first_as_they_were(tmp_path: Path) -> None:
    few = write_sample(tmp_path / "a", num_participants=2)
    many = write_sample(tmp_path / "b", num_participants=5)
    for one, other in zip(few, many, strict=True):
        assert other.read_bytes().startswith(one.read_bytes())
        assert len(other.read_bytes().splitlines()) == 5


def test_sizes(tmp_path: Path) -> None:
    write_sample(tmp_path, size="tiny")
    transcripts = list(TranscriptReader(tmp_path, ReadOptions()))
    assert len(transcripts) == 6
    assert all(transcript.num_responses <= 12 for transcript in transcripts)


@pytest.mark.parametrize("arguments", [{"size": "huge"}, {"seed": -1}, {"num_participants": 0}])
def test_arguments_that_cannot_be_meant(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        write_sample(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


# --- the choices follow the probabilities


@pytest.mark.parametrize("study", TASKS)
def test_choices_are_calibrated(sessions: dict[str, list[Session]], study: str) -> None:
    """In each decile of the true probability, the share of first options lies within 4 standard errors of its mean."""
    probs, firsts = pooled(sessions[study], "probs"), pooled(sessions[study], "firsts")
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (probs >= low) & (probs < low + 0.1)
        if inside.sum() < 30:
            continue
        standard_error = math.sqrt((probs[inside] * (1 - probs[inside])).sum()) / inside.sum()
        assert abs(firsts[inside].mean() - probs[inside].mean()) < 4 * standard_error, low


@pytest.mark.parametrize("study", TASKS)
def test_true_nll_is_that_of_the_probabilities(sessions: dict[str, list[Session]], study: str) -> None:
    nll_nats = np.concatenate([session.nll_nats() for session in sessions[study]])
    probs, firsts = pooled(sessions[study], "probs"), pooled(sessions[study], "firsts")
    np.testing.assert_allclose(nll_nats, -np.log(np.where(firsts == 1, probs, 1 - probs)), atol=1e-6)
    # The mean NLL is an estimate of the mean entropy: within 4 standard errors.
    entropy_nats = -(probs * np.log(probs) + (1 - probs) * np.log(1 - probs))
    variance = probs * (1 - probs) * np.log(probs / (1 - probs)) ** 2
    standard_error = math.sqrt(variance.sum()) / len(probs)
    assert abs(nll_nats.mean() - entropy_nats.mean()) < 4 * standard_error
    assert 0.1 < nll_nats.mean() < 0.9 * LN_2


def test_the_demo_beats_guessing_in_every_study(demo: tuple[TranscriptReader, list[Transcript]]) -> None:
    for study in TASKS:
        values = [nll for t in demo[1] if t.study == study for nll in true_nll(t.extra) or ()]
        assert np.mean(values) < 0.9 * LN_2


@pytest.mark.parametrize("study", TASKS)
def test_conflict_slows_responses(sessions: dict[str, list[Session]], study: str) -> None:
    for_all = []
    for session in sessions[study]:
        conflict = 1 - np.abs(2 * np.asarray(session.probs) - 1)
        for_all.append(np.corrcoef(conflict, np.log(session.rts_ms))[0, 1])
    assert np.mean(for_all) > 0.3
    assert pooled(sessions[study], "rts_ms").min() > 150


# --- each task does what it is named after


def test_bandit_learners_learn_and_relearn(sessions: dict[str, list[Session]]) -> None:
    """Wins a trial: chance (0.5) at the start, near the better arm's 0.8 later, below chance once it changed sides."""
    wins = np.mean([["win 1" in line for line in s.lines[2:]] for s in sessions["synthetic_two_armed_bandit"]], axis=0)
    assert wins.shape == (100,)
    assert abs(wins[0] - 0.5) < 4 * math.sqrt(0.25 / 60)
    assert wins[20:50].mean() > 0.65
    assert wins[50:52].mean() < 0.45
    assert wins[70:].mean() > 0.65


def test_the_bandit_pays_as_told() -> None:
    wins = [line for p in range(40) for line in bandit_session(Draws(1, p), 100).lines[2:] if "win 1 point." in line]
    losses = [line for p in range(40) for line in bandit_session(Draws(1, p), 100).lines[2:] if "win 0 points." in line]
    assert len(wins) + len(losses) == 4000
    assert 0.55 < len(wins) / 4000 < 0.8, "between chance and the better arm's rate"


def test_prospect_theory() -> None:
    assert subjective_value(16.0, 0.5, 2.0) == 4.0
    assert subjective_value(-16.0, 0.5, 2.0) == -8.0
    assert subjective_value(0, 0.9, 2.0) == 0.0
    assert weighted_probability(1.0, 0.6) == 1.0
    assert weighted_probability(0.05, 0.6) > 0.05, "small probabilities are overweighted"
    assert weighted_probability(0.9, 0.6) < 0.9, "large ones underweighted"
    assert weighted_probability(0.3, 1.0) == pytest.approx(0.3)


def test_the_gamble_lies_on_either_key() -> None:
    session = risky_session(Draws(5), 100)
    sure_is_second = sum(line.index("for sure") > line.index("otherwise") for line in session.lines[2:])
    assert 25 < sure_is_second < 75


def test_words_and_pseudowords() -> None:
    draws = Draws(2)
    made = {pseudoword(draws, num_syllables) for num_syllables in (1, 2) for _ in range(2000)}
    assert len(made) > 1000
    assert not made & {*COMMON_WORDS, *RARE_WORDS}
    assert all(string.isascii() and string.islower() for string in made)
    session = lexical_session(Draws(3), 100)
    shown = [line.removeprefix("The string is ").partition(".")[0] for line in session.lines[2:]]
    assert sum(string in {*COMMON_WORDS, *RARE_WORDS} for string in shown) == 50


def test_common_words_are_accepted_more_often_than_pseudowords(sessions: dict[str, list[Session]]) -> None:
    said_word: dict[str, list[bool]] = {"common": [], "rare": [], "none": []}
    for session in sessions["synthetic_lexical_decision"]:
        for line, is_first in zip(session.lines[2:], session.firsts, strict=True):
            string = line.removeprefix("The string is ").partition(".")[0]
            kind = "common" if string in COMMON_WORDS else "rare" if string in RARE_WORDS else "none"
            said_word[kind].append(is_first)
    common, rare, none = (np.mean(said_word[kind]) for kind in ("common", "rare", "none"))
    assert common > 0.9 > rare > 0.55
    assert none < 0.25


# --- the accessor


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ('{"true_nll_nats": [0.5, 1]}', [0.5, 1.0]),
        ('{"other": 1}', None),
        ("{}", None),
        ("", None),
        ('{"true_nll_nats": "0.5"}', None),
        ('{"true_nll_nats": [0.5, null]}', None),
        ('{"true_nll_nats": [0.5, NaN]}', None),
    ],
)
def test_true_nll(extra: str, expected: list[float] | None) -> None:
    assert true_nll(extra) == expected
