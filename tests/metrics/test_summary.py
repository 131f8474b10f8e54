"""The table's figures against values worked out by hand."""

import json
import math

import pytest
from written_runs import write_run

from psyfast.metrics.summary import summarise
from psyfast.report.score_table import footnotes, score_table
from psyfast.store.run_folder import PartRecord, RunFolder, streamed_table
from psyfast.store.schema import RESPONSES, participants_schema


def response(study, participant, response_idx, text, nll, options=None, flags=()):
    return {
        "study": study,
        "experiment": study,
        "participant": participant,
        "response_idx": response_idx,
        "response": text,
        "nll_nats": nll,
        "options": options,
        "flags": list(flags),
    }


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    rows = [
        response("a", "1", 0, "x", 0.5, ["x", "y"]),
        response("a", "1", 1, "y ", 1.5, ["x", "y"]),
        response("a", "1", 2, "z", 9.0, ["x", "y"], ["not_in_options"]),
        response("a", "2", 0, "", None, None, ["empty"]),
        response("b", "1", 0, "w", 3.0),
        response("b", "1", 1, "v", 1.0, ["u", "v", "w", "t"]),
    ]
    record = PartRecord(0, 0, 3, 100, 90, 6, 6, {}, {"a": 75, "b": 25}, {"engine": 1.5, "plan": 0.5})
    folder.write_part("m", "plain", record, rows, RESPONSES)
    with streamed_table(folder.participants_path, participants_schema(())) as add:
        true = json.dumps({"true_nll_nats": [0.25, 0.75, 0.5]})
        add({"study": "a", "experiment": "a", "participant": "1", "extra": true})
        add({"study": "a", "experiment": "a", "participant": "2", "extra": "{}"})
        add({"study": "b", "experiment": "b", "participant": "1", "extra": "{}"})
    return folder


def test_by_study_and_over_all(run):
    a, b, overall = summarise(run)
    assert (a.study, a.num_responses, a.num_scored, a.num_with_options) == ("a", 4, 3, 2)
    assert a.num_outside_options == 1
    assert a.mean_nll_nats == pytest.approx(11 / 3)
    assert a.guess_nats == pytest.approx(math.log(2))
    assert a.pseudo_r2 == pytest.approx(1 - 2.0 / (2 * math.log(2)))
    assert a.best_nats == pytest.approx(0.5)
    assert (b.mean_nll_nats, b.guess_nats) == (2.0, pytest.approx(math.log(4)))
    assert b.pseudo_r2 == pytest.approx(1 - 1 / math.log(4))
    assert b.best_nats is None
    assert overall.study is None and overall.num_responses == 6
    assert overall.mean_nll_nats == pytest.approx((11 / 3 + 2) / 2)
    assert overall.pseudo_r2 == pytest.approx((a.pseudo_r2 + b.pseudo_r2) / 2)


def test_a_set_of_one_is_never_used(tmp_path):
    rows = [
        response("a", "1", 0, "x", 0.5, ["x", "y"]),
        response("a", "1", 1, "x", 2.0, ["x"]),
        response("a", "1", 2, "z", 3.0, ["x"]),
        response("a", "1", 3, "z", 3.0, []),
        response("b", "1", 0, "x", 2.0, ["x"]),
    ]
    run = write_run(tmp_path / "run", {("m", "plain"): rows})
    a, b, _ = summarise(run)
    assert (a.num_scored, a.num_with_options, a.num_outside_options) == (4, 1, 0)
    assert a.guess_nats == pytest.approx(math.log(2))
    assert (b.num_with_options, b.guess_nats, b.pseudo_r2) == (0, None, None)
    assert a.pseudo_r2 == pytest.approx(1 - 0.5 / math.log(2))


def test_tokens_a_second_share_a_windows_time_by_tokens(run):
    a, _, overall = summarise(run)
    assert a.tok_per_s == overall.tok_per_s == 50.0


def test_the_table_says_what_it_leaves_out(run):
    from rich.console import Console

    rows = summarise(run)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(score_table(rows))
    text = console.export_text()
    assert "3 of 4" in text and "3.667" in text and "–" in text
    assert max(map(len, text.splitlines())) <= 80
    notes = " ".join(footnotes(rows))
    assert "none of their options" in notes and "flags" in notes and "95 %" in notes and "best" in notes
