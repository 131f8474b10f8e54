"""The audit of trials, choice sets and letters: counts, examples, the tables at 80 columns, and the real studies."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from test_trials import session

from psyfast.data.records import Transcript
from psyfast.data.text_audit import TextAudit, audit_text
from psyfast.data.transcripts import TranscriptReader
from psyfast.report.text_audit_table import print_text_audit

PRESSES = "You press <<{}>>.\n"


def study(name: str, *texts: str) -> list[Transcript]:
    return [replace(session(text), study=name, participant=str(idx)) for idx, text in enumerate(texts)]


def small() -> list[Transcript]:
    both = "Press J or F.\n" + "".join(map(PRESSES.format, "JF" * 10)) + PRESSES.format("K")
    alike = "Press J or F.\n" + PRESSES.format("J") * 8
    word = "A coin.\n\nOne.\n" + "".join(map(PRESSES.format, "AB" * 4))
    own = replace(session(PRESSES.format("x") * 2), study="own", options=(("x", "y"),) * 2, trials=(1, 1))
    return [*study("[b]keys", both, alike, ""), *study("words", word), own]


def printed(report: TextAudit) -> str:
    out = io.StringIO()
    print_text_audit(report, Console(file=out, width=80, no_color=True), trials=True, options=True)
    return out.getvalue()


def test_counts_worked_out_by_hand() -> None:
    keys, words, own = audit_text(small()).studies
    assert (keys.num_transcripts, keys.num_responses, keys.num_answers) == (3, 29, 29)
    assert (keys.num_with_set, keys.num_participants_with_set, keys.num_outside, keys.num_uncertain) == (21, 1, 1, 0)
    assert (keys.num_always_same, keys.num_relabelled) == (1, 1)
    assert (keys.rules, keys.num_trials, keys.trial_sizes) == ({"lines": 3}, 29, {1: 29})
    assert keys.sets == ((("F", "J"), 21),)
    assert keys.refusals == {"too_few_letters": 2}
    assert (words.num_with_set, words.num_uncertain, words.refusals) == (8, 8, {"word": 1})
    assert (own.rules, own.num_trials, own.num_from_data, own.num_with_set) == ({"field": 1}, 1, 1, 2)
    assert own.trial_sizes == {2: 1}


def test_counts_of_studies_and_json() -> None:
    document = json.loads(json.dumps(audit_text(small()).to_dict(), allow_nan=False))
    assert document["num_studies"] == {
        "studies": 3, "with_trials": 2, "with_headings": 0, "with_sets": 3, "with_uncertain_sets": 1,
        "with_sets_for_95_percent": 2, "relabelled": 2, "with_refusals": 2, "by_rule": {"lines": 2, "field": 1},
        "by_refusal": {"too_few_letters": 1, "word": 1},
    }  # fmt: skip


def test_examples() -> None:
    keys, words, _ = audit_text(small(), num_examples=1).studies
    assert [(one.kind, one.response_idx) for one in keys.option_examples] == [("set", 0), ("not_in_options", 20)]
    assert keys.option_examples[0].context == "Press J or F.\nYou press <<J>>"
    assert keys.trial_examples[0].instructions_end == "Press J or F.\n"
    (refusal,) = words.refusal_examples
    assert (refusal.reason, refusal.letter) == ("word", "A")
    none = audit_text(small(), num_examples=0).studies
    assert not any(one.trial_examples or one.option_examples or one.refusal_examples for one in none)


def test_the_tables_fit_80_columns_and_show_markup_as_it_stands() -> None:
    text = printed(audit_text(small()))
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines() if line.startswith("[b]keys ")]
    assert rows == [
        ["[b]keys", "29", "29", "1", "3", "–"],
        ["[b]keys", "29", "21", "!72%", "1", "of", "3", "–", "1"],
        ["[b]keys", "1", "of", "3", "2", "–"],
    ]
    assert "studies with sets: 3 of 3" in text and "transcripts whose sets are the data's own: 1" in text


def test_real_studies(shared_dir: Path) -> None:
    report = audit_text(TranscriptReader(shared_dir / "data" / "psych201"))
    assert max(map(len, printed(report).splitlines())) <= 80
    counts = report.to_dict()["num_studies"]
    assert counts == {
        "studies": 29, "with_trials": 29, "with_headings": 9, "with_sets": 19, "with_uncertain_sets": 3,
        "with_sets_for_95_percent": 18, "relabelled": 16, "with_refusals": 15,
        "by_rule": {"blocks": 6, "lines": 22, "returns": 2}, "by_refusal": {"too_few_letters": 14, "word": 1},
    }  # fmt: skip
    by_name = {one.study: one for one in report.studies}
    two_stages = [name for name, one in by_name.items() if "returns" in one.rules]
    assert two_stages == ["nussenbaum2020twostep", "potter2017twostep"]
    assert by_name["shahar2019twosteptask"].trial_sizes == {2: 511}
    assert by_name["schiekiera2025metascience"].trial_sizes == {4: 49, 7: 16}
    assert {name for name, one in by_name.items() if one.num_uncertain} == {"frey2017dfe", *two_stages}
    # The one set among them that some answers are outside of: three a hundred pressed nothing in time.
    assert {name: one.num_outside for name, one in by_name.items() if one.num_outside} == {
        "phaneuf-hadd_2025_cogeff": 7
    }
    assert by_name["sandbrink2024metacontrol"].refusals == {"word": 2}
    assert sum(one.num_with_set for one in report.studies) == 12056
