"""Every condition on real transcripts: which studies take part, and that no response is lost or scored twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from test_chat import TURNS, template_of

from psyfast.data.conditions.condition import Setting
from psyfast.data.conditions.registry import conditions_of
from psyfast.data.conditions.renderer import Renderer
from psyfast.data.encode import Protocol
from psyfast.data.rendering import LeftOut
from psyfast.data.transcripts import ReadOptions, TranscriptReader

NUM_STUDIES = {
    "plain": 29,
    "chat": 29,
    "persona": 15,
    "shuffled-persona": 14,
    "discrete": 16,
    "no-instructions": 29,
    "no-history": 29,
    "history=5": 29,
    "relabel": 16,
}
"""Of the 29 that lie in the shared folder."""

REFUSED = {"refused_too_few_letters": 39, "refused_word": 2}
"""Transcripts that cannot be relabelled, of 76."""


@pytest.mark.parametrize("protocol", list(Protocol))
def test_who_takes_part(shared_dir: Path, protocol: Protocol) -> None:
    reader = TranscriptReader(shared_dir / "data" / "psych201", ReadOptions(options="auto"))
    setting = Setting(protocol, template=template_of(TURNS))
    renderer = Renderer(conditions_of(list(NUM_STUDIES)), setting).with_pools(reader)
    studies: dict[str, set[str]] = {name: set() for name in renderer.names}
    left_out: Counter[tuple[str, str]] = Counter()
    for transcript in reader:
        for name, found in zip(renderer.names, renderer.render(transcript), strict=True):
            if isinstance(found, LeftOut):
                left_out[name, found.reason] += 1
                continue
            studies[name].add(transcript.study)
            scored = [r.response_idx for text in found.texts for r in text.responses if r.is_scored]
            assert len(scored) == len(set(scored))
            if name != "discrete":
                assert set(scored) | set(found.unscored) == set(range(transcript.num_responses))
    assert {name: len(found) for name, found in studies.items()} == NUM_STUDIES
    assert {reason: number for (name, reason), number in left_out.items() if name == "relabel"} == REFUSED
