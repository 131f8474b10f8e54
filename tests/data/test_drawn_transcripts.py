"""Transcripts on disk in the order of the drawing."""

from pathlib import Path

import pytest

from psyfast.data.drawing_order import drawn
from psyfast.data.drawn_transcripts import DrawnTranscripts
from psyfast.data.transcripts import transcripts_from_rows
from psyfast.errors import RunError

ROWS = [
    {
        "study": study,
        "participant": i,
        "text": f"{study} {'x' * i} <<A>>.",
        "age": "30",
        "options": ["A", "B"],
        "RTs": [1.0],
    }
    for study, size in (("b", 5), ("a", 2))
    for i in range(size)
]


def test_it_hands_out_what_was_read_in_the_order_of_the_drawing(tmp_path):
    transcripts = list(transcripts_from_rows(ROWS))
    with DrawnTranscripts(transcripts, tmp_path, seed=4) as kept:
        order = drawn([transcript.key for transcript in transcripts], 4)
        assert list(kept.between(0, 7)) == [transcripts[i] for i in order]
        assert list(kept.between(2, 4)) == [transcripts[i] for i in order[2:4]]
        assert list(kept.first(3)) == list(kept.first(3)) == [transcripts[i] for i in order[:3]]
        assert (kept.studies, kept.sizes, len(kept)) == (("b", "a"), [5, 2], 7)
        assert [kept.studies[idx] for idx in kept.study_of] == [transcripts[i].study for i in order]
        assert kept.num_chars == [len(transcripts[i].text) for i in order]
    assert list(tmp_path.iterdir()) == []


def test_who_has_no_response_is_not_drawn(tmp_path):
    rows = [*ROWS, {"study": "c", "participant": 1, "text": "Nothing."}]
    with DrawnTranscripts(transcripts_from_rows(rows), tmp_path, seed=0) as kept:
        assert (len(kept), kept.studies, kept.num_without_responses) == (7, ("b", "a"), 1)


def test_a_folder_that_cannot_take_the_copy(tmp_path):
    with pytest.raises(RunError, match="cannot hold the transcripts while they are drawn"):
        DrawnTranscripts(transcripts_from_rows(ROWS), Path(tmp_path) / "nowhere", seed=0)
