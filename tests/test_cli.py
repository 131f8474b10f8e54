"""The command line as a new user meets it: what is printed where, exit codes, and mistakes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.family_models import make_case
from tests.tiny import make_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


def write_data(path):
    rows = [{"text": "You press <<A>>. You press <<B>>.", "participant": i, "options": ["A", "B"]} for i in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "mine.jsonl")


def psyfast(*arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "psyfast", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


@pytest.fixture(scope="module")
def scored(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    done = psyfast("score", write_data(folder / "mine.jsonl"), "--model", model, "-o", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(scored, tmp_path):
    """A copy of a finished run, to be made again or edited."""
    return shutil.copytree(scored, tmp_path / "run")


def test_score_prints_the_table_and_where_the_results_lie(model, data, tmp_path):
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout and "all (mean)" in done.stdout and f"Results: {tmp_path / 'run'}" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "Results" not in line)
    assert (tmp_path / "run" / "manifest.json").is_file()
    assert re.search(r"threads?, at \d+% of its peak of\s[\d,]+\sGFLOP/s; attn_in,", done.stdout)
    assert "delta_rule" not in done.stdout and "experts" not in done.stdout  # the model has no such layers


@pytest.mark.parametrize(
    ("case", "operator"),
    [("qwen3.5, tied, delta rule last, wide filter", "delta_rule"), ("mixtral, tied, one expert a token", "experts")],
)
def test_an_operator_of_few_models_is_named_where_one_has_it(data, tmp_path, case, operator):
    done = psyfast("score", data, "--model", make_case(tmp_path / "model", case), "-o", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    named = {word for word in ("delta_rule", "experts") if word in done.stdout}
    assert named == {operator}


def test_plain_torch_is_held_against_no_peak(model, data, tmp_path):
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", "--backend", "reference")
    assert done.returncode == 0, done.stderr
    assert "peak" not in done.stdout
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["peak"]["share"] is None


def test_a_memory_limit_is_kept_and_said(model, data, tmp_path):
    limits = ("--memory-limit", "2GB", "--weights", "streamed")
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", *limits, PSYFAST_LOG="info")
    assert done.returncode == 0, done.stderr
    assert "tiny: weights streamed, windows of 65536 tokens" in done.stderr and "of 2.00 GB" in done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["peak_rss_bytes"] < 2e9
    again = psyfast("score", "--from-manifest", tmp_path / "run", "-o", tmp_path / "again")
    assert "The same bits in all 6 rows." in again.stdout, again.stderr


def test_score_json_is_one_document(model, data, tmp_path):
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", "--json")
    document = json.loads(done.stdout)
    assert document["summary"][0]["num_scored"] == 6
    assert document["summary"][0]["guess_nats"] == pytest.approx(0.6931, abs=1e-4)
    assert document["run"] == str(tmp_path / "run")
    assert document["peak"]["share"] > 0


def test_making_a_run_again_says_whether_the_bits_agree(run, tmp_path):
    done = psyfast("score", "--from-manifest", run / "manifest.json", "-o", tmp_path / "again")
    assert done.returncode == 0 and "The same bits in all 6 rows." in done.stdout, done.stderr


def test_models_as_a_comma_list(model, data, tmp_path):
    other = make_llama(tmp_path / "other", seed=1)
    done = psyfast("score", data, "--model", f"{model},{other}", "-o", tmp_path / "run", "--json")
    assert {row["model_id"] for row in json.loads(done.stdout)["summary"]} == {"tiny", "other"}


def test_a_study_may_be_called_like_a_folder_that_is_there(model, data, tmp_path):
    study = tmp_path / "studies" / "one"
    study.mkdir(parents=True)
    (study / "prompts.jsonl").write_bytes(data.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "psyfast", "audit", ".", "--study", "one", "--tokenizer", str(model)],
        check=False,
        capture_output=True,
        text=True,
        cwd=study.parent,
    )
    assert done.returncode == 0, done.stderr


def test_a_manifest_says_itself_what_to_score(run, tmp_path):
    done = psyfast("score", "--from-manifest", run, "-o", tmp_path / "a", "--lane", "fp32", "--limit", "2")
    assert done.returncode == 2 and "leave out --lane, --limit" in done.stderr


def test_a_manifest_without_its_run_is_no_verdict(run, tmp_path):
    alone = tmp_path / "alone.json"
    alone.write_bytes((run / "manifest.json").read_bytes())
    done = psyfast("score", "--from-manifest", alone, "-o", tmp_path / "again")
    assert done.returncode == 0 and "nothing was compared" in done.stderr and "bits" not in done.stdout


@pytest.mark.parametrize(
    "edit", [{"config": ...}, {"config": {"models": 3}}, {"config": {"colour": "red"}}, {"data": []}]
)
def test_an_edited_manifest_is_named(run, tmp_path, edit):
    path = run / "manifest.json"
    manifest = {**json.loads(path.read_text()), **edit}
    path.write_text(json.dumps({key: value for key, value in manifest.items() if value is not ...}))
    done = psyfast("score", "--from-manifest", path, "-o", tmp_path / "again")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_other_bits_are_an_exit_code(run, tmp_path):
    again = psyfast("score", "--from-manifest", run, "-o", tmp_path / "again", PSYFAST_FORCE_ISA="portable")
    if "isa: portable and portable" in again.stdout or again.returncode == 0:
        pytest.skip("this machine's level gives the portable level's bits")
    assert again.returncode == 1 and "Not the same bits" in again.stdout and "isa" in again.stdout


def test_a_terminal_without_the_letters_still_gets_its_table(model, data, tmp_path):
    locale = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", **locale)
    assert done.returncode == 0 and "all (mean)" in done.stdout and "Traceback" not in done.stderr


def test_bad_rows_are_listed_in_the_manifest(model, data, tmp_path):
    data.write_text(data.read_text() + "{broken\n" + json.dumps({"txt": "no"}) + "\n")
    refused = psyfast("score", data, "--model", model, "-o", tmp_path / "run")
    assert refused.returncode == 2 and "mine.jsonl" in refused.stderr and "line 4" in refused.stderr
    assert not (tmp_path / "run" / "manifest.json").exists()
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", "--on-bad-row", "skip")
    assert done.returncode == 0 and "2 rows were skipped" in done.stdout
    skipped = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["skipped"]
    assert [row["line"] for row in skipped] == [4, 5] and skipped[1]["field"] == "text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "--modle", "x"], "--modle"),
        (["scroe"], "scroe"),
        (["score", "DATA"], "-o"),
        (["score", "-o", "OUT"], "no transcripts were named"),
        (["score", "missing.jsonl", "-o", "OUT"], "missing.jsonl"),
        (["score", "DATA", "-o", "OUT", "--model", "./nowhere"], "nowhere"),
        (["score", "DATA", "-o", "OUT", "--protocol", "exakt"], "exact, paper"),
        (["score", "DATA", "-o", "OUT", "--limit", "many"], "--limit"),
        (["score", "DATA", "-o", "OUT", "--threads", "0"], "threads is 0"),
        (["score", "DATA", "-o", "OUT", "--memory-limit", "3 gigs"], "'3 gigs' is not a size"),
        (["score", "DATA", "-o", "OUT", "--memory-limit", "20MB"], "or more, or use a smaller model"),
        (["score", "DATA", "-o", "OUT", "--weights", "disk"], "auto, resident, streamed"),
        (["score", "DATA", "-o", "OUT", "--study", "myne"], "mine"),
        (["score", "DATA", "-o", "DATA"], "is a file"),
        (["score", "DATA", "-o", "OUT", "--backend", "gpu"], "auto, reference, cpu"),
        (["score", "--from-manifest", "missing.json", "-o", "OUT"], "missing.json"),
        (["score", "DATA", "--from-manifest", "m.json", "-o", "OUT"], "leave out DATA"),
        (["score", "DATA", "-o", "OUT", "--model", ""], "model's name is empty"),
        (["score", "DATA", "-o", "OUT", "--study", ""], "study's name is empty"),
        (["score", "", "-o", "OUT"], "source's name is empty"),
        (["score", "DATA", "-o", "OUT", "--threads", "99999999999"], "at most 1024"),
        (["audit", "DATA", "--examples", "-1"], "--examples is -1"),
        (["audit"], "no transcripts were named"),
        (["audit", "missing.jsonl"], "missing.jsonl"),
        (["doctor", "--device", "tpu9"], "tpu9"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_was_wrong(model, data, tmp_path, arguments, message):
    places = {"DATA": str(data), "OUT": str(tmp_path / "run")}
    arguments = [places.get(argument, argument) for argument in arguments]
    if arguments[0] == "score" and not {"--model", "--modle", "--from-manifest"} & set(arguments):
        arguments += ["--model", str(model)]
    done = psyfast(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PSYFAST_FORCE_ISA", "mmx"), ("PSYFAST_FORCE_BACKEND", "gpu"), ("PSYFAST_LOG", "loud")],
)
def test_a_bad_environment_variable_is_named(variable, value):
    done = psyfast("doctor", **{variable: value})
    assert done.returncode == 2 and variable in done.stderr and value in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_shows_what_would_be_used():
    found = json.loads(psyfast("doctor", "--json").stdout)
    assert found["arithmetic"]["operators"]["linear_nll"] == "cpu"
    assert found["arithmetic"]["isa"] in found["isa_available"]
    forced = json.loads(psyfast("doctor", "--json", PSYFAST_FORCE_ISA="portable").stdout)
    assert forced["arithmetic"]["isa"] == "portable"
    reference = json.loads(psyfast("doctor", "--json", PSYFAST_FORCE_BACKEND="reference").stdout)
    assert set(reference["arithmetic"]["operators"].values()) == {"reference"}
    assert "linear_nll" in psyfast("doctor").stdout


def test_doctor_measures_the_peak():
    found = json.loads(psyfast("doctor", "--peak", "--json").stdout)
    rates = {(row["product"], row["isa"], row["lane"], row["threads"]): row["gflop_per_s"] for row in found["peak"]}
    assert {product for product, *_ in rates} == {"tile", "whole", "torch"}
    assert {isa for _, isa, *_ in rates} == {*found["isa_available"], None}
    assert {threads for *_, threads in rates} == {1, found["threads"]}
    assert all(rate > 0 for rate in rates.values())
    assert "peak" not in json.loads(psyfast("doctor", "--json").stdout)
    lines = psyfast("doctor", "--peak").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.startswith("torch.mm") for line in lines) == 1


def test_audit_shows_each_study(model, data):
    done = psyfast("audit", data, "--tokenizer", model)
    assert done.returncode == 0 and "mine" in done.stdout, done.stderr
    document = json.loads(psyfast("audit", data, "--tokenizer", model, "--json").stdout)
    assert document["studies"][0]["num_scored"]["exact"] == 6


def test_sample_then_score_knows_the_best_nll(model, tmp_path):
    assert psyfast("sample", tmp_path / "sample").returncode == 0
    done = psyfast("score", tmp_path / "sample", "--model", model, "-o", tmp_path / "run", "--json", "--limit", "2")
    rows = json.loads(done.stdout)["summary"]
    assert all(0 < row["best_nats"] < row["guess_nats"] < row["mean_nll_nats"] for row in rows)


def test_sample_of_as_many_participants_as_asked_for(tmp_path):
    assert psyfast("sample", tmp_path / "four").returncode == 0
    paths = list(map(Path, psyfast("sample", tmp_path / "seven", "--participants", "7").stdout.split()))
    assert [len(path.read_text().splitlines()) for path in paths] == [7, 7, 7]
    fewer = [(tmp_path / "four" / path.relative_to(tmp_path / "seven")).read_text() for path in paths]
    assert all(path.read_text().startswith(text) for path, text in zip(paths, fewer, strict=True))
    refused = psyfast("sample", tmp_path / "none", "--participants", "0")
    assert refused.returncode == 2 and "expected 1 or more" in refused.stderr


def test_sample_replaces_no_other_file_unasked(tmp_path):
    def sample(*options):
        return psyfast("sample", tmp_path, *options)

    paths = list(map(Path, sample().stdout.split()))
    before = [path.read_bytes() for path in paths]
    assert sample().returncode == 0  # the same bytes
    paths[-1].write_text("mine")
    refused = sample()
    assert refused.returncode == 2 and str(paths[-1]) in refused.stderr and "--overwrite" in refused.stderr
    assert sample("--seed", "1").returncode == 2
    assert [path.read_bytes() for path in paths] == [*before[:-1], b"mine"]
    assert sample("--overwrite").returncode == 0
    assert [path.read_bytes() for path in paths] == before


# A shell makes what it runs in the background ignore the signal, and so would the tests' own processes there.
CTRL_C_COUNTS = "signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", ["--help"]),  # the command line itself is still being loaded
        ("psyfast.api", ["audit", "x.jsonl"]),
        ("psyfast.inputs", ["score", "x.jsonl", "-o", "out"]),
        ("psyfast.scoring", ["score", "DATA", "-o", "OUT", "--model", "MODEL"]),
        ("psyfast.doctor", ["doctor"]),
        ("psyfast.data.sample", ["sample", "folder"]),
    ],
)
def test_ctrl_c_while_loading_is_one_line_and_exit_code_1(model, data, tmp_path, module, arguments):
    places = {"DATA": data, "OUT": tmp_path / "run", "MODEL": model}
    code = (
        "import signal, sys\n"
        f"{CTRL_C_COUNTS}"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        try:\n"
        f"            if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n"
        "            raise ImportError('as numpy does')\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from psyfast.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *(str(places.get(argument, argument)) for argument in arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr == "psyfast: stopped\n"


@pytest.mark.parametrize(
    ("place", "arguments"),
    [
        ("psyfast.api.audit_transcripts", ["audit", "x.jsonl"]),
        ("psyfast.inputs.find_inputs", ["score", "x.jsonl", "-o", "out"]),
        ("psyfast.doctor.diagnose", ["doctor"]),
        ("psyfast.data.sample.write_sample", ["sample", "folder"]),
        ("psyfast.cli.application.Commands.parse_args", ["audit"]),
        ("psyfast.cli.application._set_log_level", ["audit"]),
    ],
)
def test_ctrl_c_in_a_command_is_one_line_and_exit_code_1(place, arguments):
    code = (
        "import signal, unittest.mock\n"
        f"{CTRL_C_COUNTS}"
        "from psyfast.__main__ import main\n"
        "def interrupted(*args, **kwargs):\n"
        "    exec('signal.raise_signal(signal.SIGINT)', globals())\n"
        f"with unittest.mock.patch({place!r}, interrupted):\n"
        "    main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "" and done.stderr.startswith("psyfast: stopped") and done.stderr.count("\n") == 1


def test_without_a_terminal_progress_goes_to_standard_error(model, data, tmp_path):
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", "--json")
    json.loads(done.stdout)
    assert "\x1b" not in done.stderr + done.stdout


def test_version_and_help():
    assert psyfast("--version").stdout.startswith("psyfast 0.")
    done = psyfast("score", "--help")
    assert done.returncode == 0 and "--protocol" in done.stdout


def test_score_takes_the_level_and_the_switches(model, data, tmp_path):
    flags = ("--isa", "portable", "--no-sparse", "--no-join", "--no-share")
    done = psyfast("score", data, "--model", model, "-o", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]
    assert (config["isa"], config["sparse"], config["join_segments"], config["share"]) == (
        "portable",
        False,
        False,
        False,
    )
    refused = psyfast("score", data, "--model", model, "-o", tmp_path / "other", "--isa", "mmx")
    assert refused.returncode == 2
    assert "ISA level 'mmx'" in refused.stderr
