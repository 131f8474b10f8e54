"""`psyfast report` as a user meets it: what it writes, what it leaves alone, what it refuses and says that it lacks."""

import importlib
import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from psyfast.cli import app
from psyfast.errors import RunError, UsageError
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.schema import TABLES
from psyfast.report.build import build_report
from psyfast.report.html_page import page_html
from tests.report.synthetic_runs import MANY, PAIR, participants, write_report_run


def psyfast(*arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_report_run(tmp_path_factory.mktemp("command") / "run", conditions=("plain", "persona"))


def test_files(run, tmp_path):
    page, figures = tmp_path / "new/report.html", tmp_path / "figures"
    done = psyfast("report", run, "-o", page, "--figures", figures)
    assert done.exit_code == 0, done.exception
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (figures / "nll.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (figures / "nll.pdf").read_bytes().startswith(b"%PDF")
    svg = (figures / "forest.svg").read_text(encoding="utf-8")
    assert "Qwen2-7B → Qwen2-7B-Instruct, plain" in svg and "studies random" in svg
    assert {path.stem for path in figures.glob("*.parquet")} == {*TABLES, "sessions", "reaction_times", "metadata"}
    assert {path.stem for path in figures.glob("*.csv")} == {path.stem for path in figures.glob("*.parquet")}
    captions = (figures / "captions.txt").read_text(encoding="utf-8")
    assert all(f"{path.stem}: " in captions for path in figures.glob("*.svg"))


def test_what_is_lacking_is_said_and_not_drawn(run, tmp_path):
    done = psyfast("report", run, "-o", tmp_path / "report.html")
    shown = " ".join(done.stdout.split())
    assert "Not drawn: Chat template against none, by model. No model has the conditions plain and chat" in shown
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No model has the conditions plain and chat: score with --condition plain,chat." in page
    assert "give a CSV of experiments and their categories as --categories" in page


def test_one_model_of_one_response_makes_a_page(tmp_path):
    people = participants(num_studies=1, num_participants=1, num_responses=1)
    people[0]["extra"] = {}
    people[0]["fields"] = {}
    report = build_report([write_report_run(tmp_path / "run", ("my-model",), ("plain",), people)])
    drawn = {figure.name for figure in report.figures if figure.chart is not None}
    assert {"nll", "forest-nll", "sizes"} <= drawn
    assert not drawn & {
        "forest",
        "persona",
        "template",
        "effect-by-type",
        "categories",
        "learning",
        "metadata",
        "psych-101",
    }
    assert all(figure.missing for figure in report.figures if figure.chart is None)


def test_a_report_is_replaced_and_nothing_else_is(run, tmp_path):
    page = tmp_path / "report.html"
    assert psyfast("report", run, "-o", page, "--transcripts", 1).exit_code == 0
    first = page.read_bytes()
    assert psyfast("report", run, "-o", page, "--transcripts", 2).exit_code == 0
    assert page.read_bytes() != first
    page.write_text("my thesis")
    done = psyfast("report", run, "-o", page)
    assert isinstance(done.exception, RunError) and "is no report of psyfast" in str(done.exception)
    assert page.read_text() == "my thesis"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{here}"], "is a folder; give -o a file"),
        (["--figures", "{run}/manifest.json"], "is a file; give --figures a folder"),
        (["--figures", "{run}"], "is the folder of a run"),
        (["--transcripts", "-1"], "--transcripts is -1"),
        (["--margin", "0"], "margin is 0.0"),
        (["--group-by", "x"], "--group-by is 'x'"),
        (["--categories", "{here}/none.csv"], "cannot be read as a CSV of categories"),
        (["--pairs", "{here}/none.toml"], "none.toml"),
        (["-o", "{run}/manifest.json/report.html"], "cannot be written"),
    ],
)
def test_refusals(run, tmp_path, arguments, message):
    given = [argument.format(run=run, here=tmp_path) for argument in arguments]
    out = [] if "-o" in given else ["-o", tmp_path / "report.html"]
    done = psyfast("report", run, *given, *out)
    assert done.exit_code != 0 and message in str(done.exception), done.exception
    assert not (tmp_path / "report.html").exists()


def broken(run, tmp_path, name):
    return shutil.copytree(run, tmp_path / name)


def test_runs_that_cannot_be_meant(run, tmp_path):
    out = ["-o", tmp_path / "report.html"]
    assert "no run folder was named" in str(psyfast("report", *out).exception)
    assert "not there" in str(psyfast("report", tmp_path / "none", *out).exception)
    unfinished = broken(run, tmp_path, "unfinished")
    manifest = json.loads((unfinished / "manifest.json").read_text())
    (unfinished / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert "its status is 'running'" in str(psyfast("report", unfinished, *out).exception)
    other = broken(run, tmp_path, "other")
    manifest["config"]["protocol"] = "paper"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "--protocol paper" in str(psyfast("report", run, other, *out).exception)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["transcripts.parquet", "participants.parquet"])
def test_a_table_that_is_missing_or_broken(run, tmp_path, name):
    without = broken(run, tmp_path, "without")
    (without / name).unlink()
    done = psyfast("report", without, "-o", tmp_path / "report.html")
    assert isinstance(done.exception, RunError) and name in str(done.exception)
    (without / name).write_bytes(b"not parquet")
    done = psyfast("report", without, "-o", tmp_path / "report.html")
    assert isinstance(done.exception, RunError) and name in str(done.exception)


def test_a_text_that_was_changed(run, tmp_path):
    changed = broken(run, tmp_path, "changed")
    path = changed / "transcripts.parquet"
    table = pq.read_table(path)
    texts = [text.replace("J", "K") for text in table["text"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), [texts]), path)
    done = psyfast("report", changed, "-o", tmp_path / "report.html")
    assert isinstance(done.exception, RunError) and "is not the one that was scored" in str(done.exception)


def test_nothing_scored(tmp_path, monkeypatch):
    import tests.report.synthetic_runs as made

    rows_of = made.rows_of
    monkeypatch.setattr(made, "rows_of", lambda *given: [{**row, "nll_nats": None} for row in rows_of(*given)])
    run = made.write_report_run(tmp_path / "run", ("m",), ("plain",))
    with pytest.raises(RunError, match="no response has an NLL"):
        build_report([run])


def test_infinite_losses_have_no_effects_and_say_so(tmp_path, monkeypatch):
    import tests.report.synthetic_runs as made

    rows_of = made.rows_of
    monkeypatch.setattr(made, "rows_of", lambda *given: [{**row, "nll_nats": math.inf} for row in rows_of(*given)])
    with np.errstate(all="ignore"):
        report = build_report([made.write_report_run(tmp_path / "run", conditions=("plain", "persona", "chat"))])
    missing = {figure.name: figure.missing for figure in report.figures if figure.chart is None}
    assert {"effect-by-type", "forest", "persona", "template"} <= set(missing)
    assert "`reason` of `pair_effects` says why" in missing["effect-by-type"]
    assert "`reason` of `persona_effects` says why" in missing["persona"]
    assert "Infinity" not in page_html(report.page).partition('id="report-data"')[2].partition("</script>")[0]


def test_a_missing_library_is_named(run, tmp_path, monkeypatch):
    command = importlib.import_module("psyfast.cli.report")
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "vl_convert" else object())
    done = psyfast("report", run, "-o", tmp_path / "report.html")
    assert isinstance(done.exception, UsageError)
    assert "needs vl-convert-python: pip install vl-convert-python" in str(done.exception)


def test_more_models_than_colours(tmp_path):
    """Generations are coloured then; every model keeps a row."""
    run = write_report_run(
        tmp_path / "run", MANY, ("plain", "persona"), participants(num_studies=2, num_participants=3)
    )
    report = build_report([run], MetricsConfig(num_resamples=99, num_flips=99))
    (nll,) = (figure for figure in report.figures if figure.name == "nll")
    assert len(nll.data["rows"]) == 2 * len(MANY) and nll.data["rows"]["colour"].n_unique() == 5


@pytest.mark.slow
def test_four_models_of_thirty_studies(tmp_path):
    models = (*PAIR, "Qwen3-8B-Base", "Qwen3-8B")
    run = write_report_run(tmp_path / "run", models, people=participants(30, 10, 80))
    assert psyfast("report", run, "-o", tmp_path / "report.html", "--as-published").exit_code == 0


def test_conditions_that_are_not_plain(tmp_path):
    """A run of other conditions shows the first of them, and no transcript: responses have their place in the plain text."""
    run = write_report_run(tmp_path / "run", PAIR, ("no-history", "relabel"))
    report = build_report([run])
    assert report.page.choices["condition"] == ("no-history", "relabel")
    assert "no text of the condition plain" in report.page.browser.missing
    by_type = next(figure for figure in report.figures if figure.name == "effect-by-type")
    assert by_type.data["rows"]["condition"].to_list() == ["no-history", "relabel"]
