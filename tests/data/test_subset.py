"""The evaluation split: who is in it, by the data's own numbers and by a draw."""

from __future__ import annotations

import pytest

from psyfast.data.transcripts import ReadOptions, TranscriptReader, transcripts_from_rows
from psyfast.errors import DataError, UsageError
from psyfast.study import LEFT_OUT


def rows(study, num, **fields):
    return [
        {"study": study, "participant": idx, "text": "You press <<J>>.", **{k: f(idx) for k, f in fields.items()}}
        for idx in range(num)
    ]


def chosen(data, seed=0, **options):
    reader = transcripts_from_rows(data, options=ReadOptions(subset="test", seed=seed, **options))
    return reader, [(transcript.study, int(transcript.participant)) for transcript in reader]


def test_a_tenth_of_each_study_and_at_most_a_hundred():
    data = rows("large", 1200) + rows("small", 37) + rows("nine", 9) + rows("ten", 10) + rows(LEFT_OUT[0], 50)
    reader, found = chosen(data)
    counts = {study: sum(1 for name, _ in found if name == study) for study, _ in found}
    assert counts == {"large": 100, "small": 3, "ten": 1}
    assert reader.report.too_small == ("nine",)
    assert reader.report.num_outside_subset == len(data) - len(found)
    assert reader.report.num_transcripts == len(found) == 104


def test_the_data_s_own_numbers_decide_where_all_have_one():
    data = rows("s", 30, participant_reindexed=lambda idx: str((idx + 7) % 30))
    assert chosen(data)[1] == [("s", 23), ("s", 24), ("s", 25)]
    floats = rows("s", 30, participant_reindexed=lambda idx: f"{(idx + 7) % 30}.0")
    assert chosen(floats)[1] == [("s", 23), ("s", 24), ("s", 25)]
    del data[3]["participant_reindexed"]
    assert chosen(data)[1] != [("s", 23), ("s", 24), ("s", 25)]
    assert len(chosen(data)[1]) == 3


def test_of_psych_101_only_its_own_test_participants():
    data = rows("s", 40, is_psych101=lambda idx: True, is_psych101_test=lambda idx: idx >= 38)
    assert sorted(chosen(data)[1]) == [("s", 38), ("s", 39)]
    strings = rows("s", 40, is_psych101=lambda idx: "True", is_psych101_test=lambda idx: str(idx >= 20))
    assert len(chosen(strings)[1]) == 4
    assert all(participant >= 20 for _, participant in chosen(strings)[1])
    numbered = rows(
        "s",
        40,
        is_psych101=lambda idx: True,
        is_psych101_test=lambda idx: idx >= 20,
        participant_reindexed=lambda idx: idx % 20,
    )
    assert chosen(numbered)[1] == [("s", 20), ("s", 21), ("s", 22), ("s", 23)]


def test_the_draw_depends_on_the_seed_and_not_on_the_order():
    data = rows("s", 200)
    assert sorted(chosen(data)[1]) == sorted(chosen(data[::-1])[1])
    assert sorted(chosen(data)[1]) != sorted(chosen(data, seed=1)[1])


def test_participants_without_a_response_are_not_counted():
    data = [*rows("s", 19), {"study": "s", "participant": 99, "text": "nothing"}]
    assert len(chosen(data)[1]) == 1


def test_the_limit_counts_what_is_in_the_subset():
    assert len(chosen(rows("s", 200), limit=5)[1]) == 5
    _, found = chosen(rows("s", 200) + rows("t", 200), studies=("t",))
    assert len(found) == 20


def test_an_empty_subset_is_an_error():
    with pytest.raises(DataError, match="nobody is in the test subset of 14 transcripts"):
        chosen(rows("s", 9) + rows("t", 5))


def test_a_published_test_set_is_not_split_again(tmp_path):
    folder = tmp_path / "Psych-201-test"
    (folder / "s").mkdir(parents=True)
    (folder / "s" / "prompts.jsonl").write_text('{"text": "<<J>>"}\n')
    with pytest.raises(UsageError, match="is the test subset already"):
        TranscriptReader(str(folder), ReadOptions(subset="test"))
    with pytest.raises(UsageError, match="subset is 'train'"):
        ReadOptions(subset="train")
