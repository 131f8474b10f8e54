"""The study's evaluation split (PROTOCOL 1): a tenth of each study's participants, at most 100, and six studies less.

    study of 1,200, none of Psych-101       participants 0 to 99
    study of 37                             participants 0 to 2
    study of 9                              none
    study of Psych-101, 400 of 1,000 its    participants 0 to 99 of those 400
    own test participants

Participants go by `participant_reindexed` where every one of a study has it, else in an order that is drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from psyfast.data.records import Transcript
from psyfast.study import LEFT_OUT

SHARE, MOST = 10, 100


@dataclass(frozen=True)
class TestSplit:
    """Who is in the split. keys: digests of their keys. too_small: studies of which nobody is, for want of participants."""

    keys: frozenset[bytes]
    too_small: tuple[str, ...]

    def __contains__(self, transcript: Transcript) -> bool:
        return _digest(transcript) in self.keys


@dataclass(frozen=True)
class _Participant:
    digest: bytes
    number: int | None
    can_test: bool


def find_test_split(transcripts: Iterable[Transcript], seed: int) -> TestSplit:
    """The split of a whole data set, read once; the draw depends on the seed and the participants' keys alone.

    Transcripts without a marked response take no part, and of Psych-101 only its own test participants can be in it.
    """
    by_study: dict[str, list[_Participant]] = defaultdict(list)
    for transcript in transcripts:
        if transcript.study not in LEFT_OUT and transcript.num_responses:
            by_study[transcript.study].append(_participant(transcript))
    keys: set[bytes] = set()
    too_small = []
    for study, participants in by_study.items():
        size = min(len(participants) // SHARE, MOST)
        if not size:
            too_small.append(study)
        keys.update(_first(participants, size, seed))
    return TestSplit(frozenset(keys), tuple(too_small))


def _first(participants: list[_Participant], size: int, seed: int) -> list[bytes]:
    candidates = [one for one in participants if one.can_test]
    if all(one.number is not None for one in participants):
        return [one.digest for one in candidates if one.number is not None and one.number < size]
    drawn = sorted(candidates, key=lambda one: _draw(one.digest, seed))
    return [one.digest for one in drawn[:size]]


def _participant(transcript: Transcript) -> _Participant:
    extra = json.loads(transcript.extra)
    number = str(extra.get("participant_reindexed", "")).removesuffix(".0")
    can_test = not _is_true(extra.get("is_psych101")) or _is_true(extra.get("is_psych101_test"))
    return _Participant(_digest(transcript), int(number) if number.isdecimal() else None, can_test)


def _is_true(value: object) -> bool:
    return value is True or value == 1 or str(value).lower() == "true"


def _digest(transcript: Transcript) -> bytes:
    return hashlib.blake2b(json.dumps(transcript.key).encode(), digest_size=16).digest()


def _draw(digest: bytes, seed: int) -> bytes:
    return hashlib.blake2b(json.dumps(["test split", seed]).encode() + digest, digest_size=16).digest()
