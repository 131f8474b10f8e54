"""The choice of transcripts, and where their texts are cut."""

import hashlib
from collections import Counter

import pytest

from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.responses import index_responses
from psyfast.metrics.results import open_results
from psyfast.report import transcripts
from psyfast.report.findings import Findings
from psyfast.report.transcripts import choose_transcripts
from tests.report.synthetic_runs import PAIR, participants, rows_of, write_report_run


def findings_of(run, **config):
    results = open_results([run])
    config = MetricsConfig(num_resamples=99, num_flips=99, **config)
    return Findings(compute_metrics([run], config), results, index_responses(results))


@pytest.fixture(scope="module")
def people():
    return participants(num_studies=3, num_participants=5)


@pytest.fixture(scope="module")
def findings(people, tmp_path_factory):
    return findings_of(write_report_run(tmp_path_factory.mktemp("t") / "run", PAIR, ("plain", "chat"), people))


def test_pieces_are_the_text_and_every_second_one_a_response(findings, people):
    browser = choose_transcripts(findings, 100, 0)
    assert (len(browser.transcripts), browser.num_participants) == (15, 15)
    texts = {(person["key"][0], person["key"][2]): person for person in people}
    for shown in browser.transcripts:
        person = texts[shown["experiment"], shown["participant"]]
        assert "".join(shown["pieces"]) == person["text"]
        assert shown["pieces"][1::2] == [str(choice) for choice in person["choices"]]
        assert set(shown["nll"]) == {f"{model}\n{condition}" for model in PAIR for condition in ("plain", "chat")}
        want = [round(row["nll_nats"], 3) for row in rows_of([person], PAIR[1], "chat")]
        if person is people[0]:  # whose rows do not depend on those of others
            assert shown["nll"][f"{PAIR[1]}\nchat"] == want


def test_the_choice_is_seeded_and_even_over_experiments(findings):
    chosen = [
        [(t["experiment"], t["participant"]) for t in choose_transcripts(findings, 7, seed).transcripts]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert sorted(Counter(study for study, _ in chosen[0]).values()) == [2, 2, 3]


def test_none(findings):
    assert choose_transcripts(findings, 0, 0).missing == "Left out: --transcripts 0."


def test_long_texts_are_cut_between_responses(findings, people, monkeypatch):
    monkeypatch.setattr(transcripts, "MAX_CHARS", 200)
    for shown in choose_transcripts(findings, 3, 0).transcripts:
        (person,) = (p for p in people if (p["key"][0], p["key"][2]) == (shown["experiment"], shown["participant"]))
        text = "".join(shown["pieces"])
        assert person["text"].startswith(text) and len(text) <= 200 and shown["cut"] == len(person["text"])
        assert len(shown["pieces"]) == 2 * len(shown["nll"][f"{PAIR[0]}\nplain"]) + 1


def test_characters_beyond_the_basic_plane(tmp_path):
    """Offsets count characters, not the halves that a browser counts."""
    people = participants(num_studies=1, num_participants=1, num_responses=3)
    people[0]["text"] = "😀😀" + people[0]["text"]
    people[0]["spans"] = [(start + 2, stop + 2) for start, stop in people[0]["spans"]]
    findings = findings_of(write_report_run(tmp_path / "run", ("m",), ("plain",), people))
    (shown,) = choose_transcripts(findings, 1, 0).transcripts
    assert shown["pieces"][1::2] == [str(choice) for choice in people[0]["choices"]]
    assert (
        hashlib.sha256("".join(shown["pieces"]).encode()).digest()
        == hashlib.sha256(people[0]["text"].encode()).digest()
    )


def test_studies_that_are_left_out_are_not_shown(tmp_path):
    people = participants(num_studies=2, studies=("xu2021novelty", "b"))
    run = write_report_run(tmp_path / "run", ("m",), ("plain",), people)
    browser = choose_transcripts(findings_of(run, as_published=True), 100, 0)
    assert {shown["experiment"] for shown in browser.transcripts} == {"b"}
