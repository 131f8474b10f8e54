"""The report of real transcripts: their lengths, alphabets, choice sets and metadata, with NLLs that are made up."""

import json

import numpy as np
import pytest

from psyfast.data.responses import find_responses
from psyfast.data.transcripts import ReadOptions, TranscriptReader
from psyfast.metrics.config import MetricsConfig
from psyfast.report.build import build_report
from psyfast.report.files import write_page
from psyfast.store.run_folder import PartRecord, RunFolder, streamed_table
from psyfast.store.schema import RESPONSES, TRANSCRIPTS, participants_schema
from tests.report.synthetic_runs import CONDITIONS, FIELDS

MODELS = ("SmolLM2-135M-Instruct", "SmolLM2-135M-noise-1", "SmolLM2-135M-noise-2")
PAIRS = """
[models.SmolLM2]
"SmolLM2-135M-Instruct" = 0.135
"SmolLM2-135M-noise-1" = 0.135
"SmolLM2-135M-noise-2" = 0.135
[pairs.noise]
"SmolLM2-135M-noise-1" = "SmolLM2-135M-Instruct"
"SmolLM2-135M-noise-2" = "SmolLM2-135M-Instruct"
[trend]
SmolLM2 = "noise"
"""


def rows_of(transcript, rng, worse):
    """Rows of a transcript's responses; NLLs about those of real models, larger by `worse`."""
    rows = []
    key = dict(zip(("study", "experiment", "participant"), transcript.key, strict=True))
    for idx, found in enumerate(find_responses(transcript.text).responses):
        start, stop = found.trimmed(transcript.text)
        response = transcript.text[start:stop]
        options = transcript.options[idx] if transcript.options else None
        usable = bool(options) and response in options and len(options) > 1
        own = rng.uniform(0.2, 0.9) / (1 + worse) if response else None
        others = rng.dirichlet(np.ones(max(1, len(options or ()) - 1)))
        spread = iter(others)
        nlls = (
            [-np.log(own if option == response else (1 - own) * next(spread) + 1e-9) for option in options]
            if usable
            else None
        )
        rows.append(
            {
                **key,
                "response_idx": idx,
                "response": response,
                "char_start": start,
                "char_stop": stop,
                "nll_nats": None if own is None else float(-np.log(own)),
                "is_argmax": None if own is None else bool(own > 0.5),
                "rt_ms": transcript.rts_ms[idx] if transcript.rts_ms else None,
                "options": list(options) if options else None,
                "option_nll_nats": nlls,
                "flags": [] if response else ["empty"],
            }
        )
    return rows


def write_real_run(path, source):
    run = RunFolder(path)
    transcripts = list(TranscriptReader(source, ReadOptions(options="auto")))
    with (
        streamed_table(run.participants_path, participants_schema(FIELDS)) as add,
        streamed_table(run.transcripts_path, TRANSCRIPTS) as add_text,
    ):
        for each in transcripts:
            key = dict(zip(("study", "experiment", "participant"), each.key, strict=True))
            add(
                {
                    **key,
                    **each.persona,
                    "num_responses": each.num_responses,
                    "text_sha256": each.text_sha256,
                    "extra": each.extra,
                }
            )
            add_text({**key, "condition": "plain", "text": each.text})
    record = PartRecord(0, 0, len(transcripts), 1, 1, 1, 1, {}, {}, {})
    for number, model in enumerate(MODELS):
        for condition in CONDITIONS:
            rng = np.random.default_rng([number, len(condition)])
            rows = [row for each in transcripts for row in rows_of(each, rng, 0.3 * number)]
            run.write_part(model, condition, record, rows, RESPONSES)
    manifest = {
        "status": "complete",
        "models": {model: {"name": model} for model in MODELS},
        "config": {"protocol": "exact", "lane": "bf16", "conditions": list(CONDITIONS)},
        "data": {"num_transcripts": len(transcripts)},
    }
    run.write_manifest(manifest)
    return run.path


@pytest.mark.slow
def test_every_published_figure_of_real_transcripts(shared_dir, tmp_path, chromium):
    run = write_real_run(tmp_path / "run", shared_dir / "data/psych201")
    (tmp_path / "pairs.toml").write_text(PAIRS)
    config = MetricsConfig(categories=shared_dir / "data/experiment_categories.csv", pairs=tmp_path / "pairs.toml")
    report = build_report([run], config, num_transcripts=29)
    write_page(report, tmp_path / "report.html")
    assert [figure.name for figure in report.figures if figure.chart is None] in (["psych-101"], [])
    assert len(report.page.browser.transcripts) == 29
    page = chromium.new_page(viewport={"width": 360, "height": 740})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    assert errors == [] and page.evaluate("document.documentElement.scrollWidth") == 360
    for idx, shown in enumerate(report.page.browser.transcripts):
        page.locator("#transcript-choice").select_option(str(idx))
        assert page.locator("#transcript mark").count() == len(shown["pieces"]) // 2
    assert json.dumps(report.page.browser.transcripts)
    page.close()
