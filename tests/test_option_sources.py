"""`--options auto`, and a function from Python: from the transcript to the rows, the manifest and a resumed run."""

import json

import pytest

import psyfast
from psyfast.data.transcripts import ReadOptions
from psyfast.errors import DataError, RunError, UsageError
from tests.test_cli import psyfast as command
from tests.tiny import make_llama

TEXT = "Press J or F.\n" + "".join(f"You press <<{answer}>> now.\n" for answer in "JFFJ" * 5) + "You press <<K>> now.\n"
ALIKE = "Press J or F.\n" + "You press <<J>> now.\n" * 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"text": text, "participant": name} for name, text in (("both", TEXT), ("alike", ALIKE))]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def rows_of(result):
    return result.to_arrow().to_pylist()


@pytest.mark.parametrize("protocol", ["exact", "paper"])
def test_sets_found_are_scored_like_sets_given(model, data, protocol):
    found = rows_of(psyfast.score(str(model), data, protocol=protocol, lane="fp32", options="auto"))
    both = [row for row in found if row["participant"] == "both"]
    # Shares can be computed from the rows: of 31 responses 21, of 2 participants 1.
    assert sum(row["options"] is not None for row in found) == len(both) == 21
    assert {tuple(row["options"]) for row in both} == {("F", "J")}
    assert "not_in_options" in both[-1]["flags"]
    rows = [{"text": TEXT, "participant": "both", "options": ["F", "J"]}]
    given = rows_of(psyfast.score(str(model), rows, protocol=protocol, lane="fp32"))
    assert [row["option_nll_nats"] for row in both] == [row["option_nll_nats"] for row in given]
    scored = [row for row in both[:-1] if row["nll_nats"] is not None]
    assert scored
    for row in scored:
        own = row["option_nll_nats"][row["options"].index(row["response"])]
        assert own == row["nll_nats"]


def test_by_default_nothing_is_found(model, data):
    assert all(row["options"] is None for row in rows_of(psyfast.score(str(model), data)))


def test_a_function_gives_sets(model, data, tmp_path):
    def choose(transcript):
        return ["J", "F", "K"] if transcript.participant == "both" else None

    result = psyfast.score(str(model), data, options=choose, out=tmp_path / "run")
    assert {row["participant"] for row in rows_of(result) if row["options"] is not None} == {"both"}
    assert result.manifest["config"]["options"] == "callable"
    with pytest.raises(RunError, match="came from a function"):
        psyfast.api.score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    with pytest.raises(DataError, match="the function for options returned"):
        psyfast.score(str(model), data, options=lambda transcript: "JF")


def test_a_resumed_run_keeps_where_its_sets_came_from(model, data, tmp_path):
    psyfast.score(str(model), data, options="auto", out=tmp_path / "run")
    with pytest.raises(RunError, match="--options was auto and is now data"):
        psyfast.score(str(model), data, out=tmp_path / "run", resume=True)
    assert psyfast.score(str(model), data, options="auto", out=tmp_path / "run", resume=True).responses.num_rows == 31
    _, comparison = psyfast.api.score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    assert comparison.same_bits


def test_a_run_from_before_there_was_a_choice_is_resumed(model, data, tmp_path):
    psyfast.score(str(model), data, out=tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["options"]
    path.write_text(json.dumps(manifest))
    assert psyfast.score(str(model), data, out=tmp_path / "run", resume=True).responses.num_rows == 31


@pytest.mark.parametrize("options", ["guess", "callable", "", None, 3])
def test_other_sources_are_refused(model, data, options):
    with pytest.raises(UsageError, match="options"):
        psyfast.score(str(model), data, options=options)
    with pytest.raises(UsageError, match="options"):
        ReadOptions(options=options)


def test_from_the_command_line(model, data, tmp_path):
    done = command("score", data, "--model", model, "-o", tmp_path / "run", "--options", "auto", "--json")
    assert json.loads(done.stdout)["summary"][0]["num_with_options"] == 20, done.stderr
    for wrong in ("guess", "callable"):
        done = command("score", data, "--model", model, "-o", tmp_path / "new", "--options", wrong)
        assert done.returncode == 2 and "expected one of data, auto" in done.stderr


def test_the_audit_of_trials_and_options(data):
    done = command("audit", data, "--options", "--trials")
    assert done.returncode == 0, done.stderr
    assert "studies with sets: 1 of 1" in done.stdout and "by lines" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    only = command("audit", data, "--trials").stdout
    assert "by lines" in only and "studies with sets" not in only
    document = json.loads(command("audit", data, "--options", "--json").stdout)
    assert document["num_studies"]["relabelled"] == 1
    done = command("audit", data, "--options", "--tokenizer", "x", "--workers", "2")
    assert done.returncode == 2 and "look at the text alone; leave out --tokenizer, --workers" in done.stderr
