"""Whose persona a participant gets where personas are exchanged: everybody's goes to somebody else of the study."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from psyfast.data.records import Transcript

Persona = Mapping[str, str]


class PersonaPool:
    """The participants of each study who have a persona, in a drawn circle: each gets that of the next.

    The circle depends on the seed and on who takes part, not on their order in the data.
    """

    def __init__(self, transcripts: Iterable[Transcript], fields: tuple[str, ...], seed: int) -> None:
        """Those with at least one of the fields known; an iterable that can be large is read once."""
        self._seed = seed
        found: dict[str, dict[bytes, Persona]] = defaultdict(dict)
        for transcript in transcripts:
            known = {field: transcript.persona[field] for field in fields if field in transcript.persona}
            if known:
                found[transcript.study][self._draw(transcript)] = known
        self._given: dict[bytes, Persona] = {}
        for of_study in found.values():
            circle = sorted(of_study)
            for giver, receiver in zip(circle, [*circle[1:], circle[0]], strict=True):
                if giver != receiver:
                    self._given[receiver] = of_study[giver]

    def given_to(self, transcript: Transcript) -> Persona | None:
        """Another participant's persona; None where the study has no other."""
        return self._given.get(self._draw(transcript))

    def _draw(self, transcript: Transcript) -> bytes:
        """A participant's place in the circle, which no version of a random generator changes."""
        return hashlib.blake2b(
            json.dumps(["shuffled-persona", self._seed, *transcript.key]).encode(), digest_size=16
        ).digest()
