"""The audit's counts and examples, and the table at 80 columns."""

from __future__ import annotations

import io
import json

from encoding_cases import transcript_of
from rich.console import Console
from tokenizers_real import tiny_tokenizer

from psyfast.data.audit import AuditReport, audit
from psyfast.report.audit_table import print_audit

TEXTS = {
    "merges": "You <<A>>. You <<B>>. You <<C>> and",
    "markers": "x <<A>> y<<B>> >> << C >> <<>> z <<open",
}


def report(num_workers: int = 0, **settings: int) -> AuditReport:
    transcripts = [transcript_of(text, study=study) for study, text in TEXTS.items() for _ in range(3)]
    return audit(transcripts, tiny_tokenizer(" <<", ">>."), num_workers=num_workers, **settings)


def test_counts() -> None:
    merges, markers = report().studies
    assert (merges.study, merges.num_transcripts, merges.num_responses) == ("merges", 3, 9)
    assert merges.num_scored == {"paper": 3, "exact": 9}
    assert merges.flags == {"paper": {"missed": 6, "runs_on": 3}, "exact": {}}
    assert merges.num_swallowed == 6
    assert (markers.num_responses, markers.num_stray_closers, markers.num_swallowed) == (15, 3, 0)
    assert markers.num_scored == {"paper": 9, "exact": 9}
    assert markers.flags["exact"] == {"trimmed": 3, "empty": 3, "unbalanced_marker": 3}
    # as many close as open markers, so the study does not cut the last one off
    assert markers.flags["paper"] == {"missed": 3, "empty": 3, "runs_on": 3, "unbalanced_marker": 3}


def test_limits_and_examples() -> None:
    limited = report(context_limit=11, num_examples=1)
    merges, _ = limited.studies
    assert limited.context_limit == 11
    assert merges.flags["exact"]["truncated"] == 6
    assert merges.flags["paper"]["past_context"] == 3
    kinds = [(example.protocol, example.kind) for example in merges.examples]
    assert kinds == [("paper", "missed"), ("paper", "runs_on"), ("exact", "truncated")]
    runs_on = merges.examples[1]
    assert (runs_on.response_idx, runs_on.response, runs_on.num_swallowed) == (0, "A", 2)
    assert runs_on.context.startswith("You <<A>>. You")
    assert runs_on.tokens[runs_on.scored_start : runs_on.scored_stop][:2] == ("A", ">>.")


def test_workers_change_nothing_and_json_takes_it() -> None:
    one = report(num_workers=2).to_dict()
    assert one == report().to_dict()
    assert json.loads(json.dumps(one, allow_nan=False))["studies"][0]["study"] == "merges"


def test_the_table_fits_80_columns() -> None:
    out = io.StringIO()
    print_audit(report(), Console(file=out, width=80, no_color=True))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = out.getvalue()
    assert "inside another response's run-on span 6" in " ".join(text.split())
    row = next(line for line in lines if line.startswith("merges"))
    assert row.split() == ["merges", "9", "9", "3", "6", "3"]
    assert "paper runs on, swallows 2: response 0 of participant 1" in text


def test_markup_in_the_data_is_shown_as_it_stands() -> None:
    out = io.StringIO()
    odd = audit([transcript_of("[bold]x<<[red]>>\n [/]", study="[b]study")], tiny_tokenizer(" <<"))
    print_audit(odd, Console(file=out, width=80, no_color=True))
    assert "[bold]x<<[red]>>\\n [/]" in out.getvalue()
    assert out.getvalue().count("[b]study") == 2
