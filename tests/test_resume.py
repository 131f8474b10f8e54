"""A run that is killed, interrupted or damaged goes on and ends with the rows of an unbroken one, bit for bit."""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from psyfast.config import ScoreConfig
from psyfast.errors import DataError, ModelError, RunError, RunInterruptedError
from psyfast.inputs import find_inputs
from psyfast.scoring import score_run
from psyfast.store.reading import compare_runs, responses_dataset
from psyfast.store.run_folder import RunFolder
from tests.tiny import make_llama

NUM_KILLS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Transcripts of uneven length, some with options of several tokens, some without responses."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    with path.open("w") as file:
        for participant in range(60):
            trials = [f"Trial {i}. You press <<{rng.choice('JF')}>>.\n" for i in range(rng.randrange(40))]
            row = {"text": "You choose between J and F.\n" + "".join(trials), "participant": participant}
            if participant % 3 == 0:
                row["options"] = ["J", "F", "neither"]
            file.write(json.dumps(row) + "\n")
    return path


def config_of(model, data, **changes):
    settings = {"protocol": "exact", "lane": "fp32", "window_slots": 1024, "threads": 1, **changes}
    return ScoreConfig((str(model),), (str(data),), **settings)


@pytest.fixture(scope="module")
def unbroken(model, data, tmp_path_factory):
    run = score_run(find_inputs(config_of(model, data), tmp_path_factory.mktemp("runs") / "unbroken"))
    assert len(run.finished_parts("tiny", "plain")) > 12
    return run.path


def command(model, data, out, *more):
    arguments = ["score", str(data), "--model", str(model), "-o", str(out), "--lane", "fp32"]
    return [sys.executable, "-m", "psyfast", *arguments, "--window-slots", "1024", "--threads", "1", *more]


def same(one, other):
    comparison = compare_runs(one, other)
    assert comparison.num_rows > 500
    return comparison.same_bits


def test_ten_kills_at_random_moments_leave_no_trace(model, data, unbroken, tmp_path):
    """Three kills fall somewhere into starting and reading, seven shortly after some random part was written."""
    out = tmp_path / "killed"
    rng = random.Random()
    num_parts = len(list(unbroken.rglob("part-*.parquet")))
    targets = [0, 0, 0, *sorted(rng.sample(range(1, num_parts - 2), NUM_KILLS - 3))]
    seen = []
    for target in targets:
        process = subprocess.Popen(
            command(model, data, out, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and len(list(out.rglob("part-*.parquet"))) < target:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03 if target else 3))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        seen.append(len(list(out.rglob("part-*.parquet"))))
    assert len(set(seen)) > 4 and seen[-1] < num_parts, f"the kills did not fall between parts: {seen}"
    done = subprocess.run(command(model, data, out, "--resume"), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(unbroken, out)
    assert not list(out.rglob(".unfinished-*"))
    assert json.loads((out / "manifest.json").read_text())["status"] == "complete"


def test_a_missing_part_is_made_again(model, data, unbroken, tmp_path):
    run = score_run(find_inputs(config_of(model, data), tmp_path / "run"))
    parts = sorted(run.path.rglob("part-*.parquet"))
    kept = {path: path.stat().st_mtime_ns for path in parts}
    for path in (parts[0], parts[4], parts[5], parts[-1]):
        path.unlink()
    score_run(find_inputs(config_of(model, data), run.path, resume=True))
    assert same(unbroken, run.path)
    assert sum(path.stat().st_mtime_ns == mtime for path, mtime in kept.items()) == len(parts) - 4


def test_missing_tables_are_made_again(model, data, unbroken, tmp_path):
    run = score_run(find_inputs(config_of(model, data), tmp_path / "run"))
    before = pq.read_table(run.participants_path)
    run.participants_path.unlink()
    score_run(find_inputs(config_of(model, data), run.path, resume=True))
    assert pq.read_table(run.participants_path).equals(before) and same(unbroken, run.path)


def test_stopping_after_a_part_and_going_on(model, data, unbroken, tmp_path):
    answers = iter([False, True])
    with pytest.raises(RunInterruptedError, match="--resume"):
        score_run(find_inputs(config_of(model, data), tmp_path / "run"), should_stop=lambda: next(answers))
    assert len(RunFolder(tmp_path / "run").finished_parts("tiny", "plain")) == 2
    score_run(find_inputs(config_of(model, data), tmp_path / "run", resume=True))
    assert same(unbroken, tmp_path / "run")


def test_ctrl_c_stops_cleanly_after_the_part_at_hand(model, data, unbroken, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(model, data, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.rglob("part-*.parquet")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail(f"the run ended before Ctrl-C reached it: {errors}")
    assert process.returncode == 1 and "--resume" in errors and "Traceback" not in errors
    assert not list(out.rglob(".unfinished-*"))
    subprocess.run(command(model, data, out, "--resume"), check=True, capture_output=True)
    assert same(unbroken, out)


def test_another_model_joins_a_run(model, data, unbroken, tmp_path):
    other = make_llama(tmp_path / "other", seed=1, max_position_embeddings=4096)
    run = score_run(find_inputs(config_of(model, data), tmp_path / "run"))
    score_run(find_inputs(config_of(other, data), run.path, resume=True))
    manifest = run.read_manifest()
    assert set(manifest["models"]) == {"tiny", "other"} and set(manifest["tokens"]) == {"tiny", "other"}
    assert manifest["config"]["models"] == [str(model), str(other)]
    assert manifest["status"] == "complete" and len(manifest["sessions"]) == 2
    table = responses_dataset(run).to_table()
    counts = [table.filter(pc.equal(table["model"], name)).num_rows for name in ("tiny", "other")]
    assert counts[0] == counts[1] > 500


def test_a_run_with_an_unfinished_model_is_not_called_complete(model, data, unbroken, tmp_path):
    other = make_llama(tmp_path / "other", seed=1, max_position_embeddings=4096)
    with pytest.raises(RunInterruptedError):
        score_run(find_inputs(config_of(model, data), tmp_path / "run"), should_stop=lambda: True)
    run = score_run(find_inputs(config_of(other, data), tmp_path / "run", resume=True))
    manifest = run.read_manifest()
    assert manifest["status"] == "partial" and manifest["unfinished"] == ["tiny"]
    run = score_run(find_inputs(config_of(model, data), tmp_path / "run", resume=True))
    assert run.read_manifest()["status"] == "complete"


def test_a_model_that_cannot_be_loaded_leaves_the_run_as_it_was(model, data, tmp_path):
    run = score_run(find_inputs(config_of(model, data), tmp_path / "run"))
    before = run.manifest_path.read_bytes()
    broken = make_llama(tmp_path / "broken", max_position_embeddings=4096)
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError):
        score_run(find_inputs(config_of(broken, data), run.path, resume=True))
    assert run.manifest_path.read_bytes() == before


def test_a_changed_configuration_of_a_model_is_refused(data, tmp_path):
    folder = make_llama(tmp_path / "tiny", max_position_embeddings=4096)
    run = score_run(find_inputs(config_of(folder, data), tmp_path / "run"))
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="configuration of model 'tiny'"):
        score_run(find_inputs(config_of(folder, data), run.path, resume=True))


def test_the_same_bytes_under_another_study_are_other_data(model, data, tmp_path):
    for study in ("alpha", "beta"):
        (tmp_path / study).mkdir()
        (tmp_path / study / "prompts.jsonl").write_bytes(data.read_bytes())
    run = score_run(find_inputs(config_of(model, tmp_path / "alpha" / "prompts.jsonl", limit=5), tmp_path / "run"))
    with pytest.raises(RunError, match="hash"):
        score_run(find_inputs(config_of(model, tmp_path / "beta" / "prompts.jsonl", limit=5), run.path, resume=True))


@pytest.mark.parametrize("change", ["other text", "fewer rows", "more rows"])
def test_data_that_change_between_the_two_passes_are_noticed(model, data, tmp_path, change):
    copy = tmp_path / "prompts.jsonl"
    copy.write_bytes(data.read_bytes())
    inputs = find_inputs(config_of(model, copy), tmp_path / "run")
    lines = copy.read_text().splitlines()
    changed = {
        "other text": [*lines[:-1], lines[-1].replace("You choose", "They choose")],
        "fewer rows": lines[:-1],
        "more rows": [*lines, json.dumps({"text": "<<J>>", "participant": 999})],
    }[change]
    reader, passes = inputs.reader, []

    class Changing:
        """The reader, with the file rewritten between its first and its second pass."""

        @property
        def report(self):
            return reader.report

        def __iter__(self):
            if passes:
                copy.write_text("\n".join(changed) + "\n")
            passes.append(1)
            return iter(reader)

    with pytest.raises(DataError, match="changed while the run went on"):
        score_run(replace(inputs, reader=Changing()))
    assert len(passes) == 2


def test_two_processes_cannot_write_one_run(model, data, tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(RunError, match="another process"):
        score_run(find_inputs(config_of(model, data), run.path))
    score_run(find_inputs(config_of(model, data, limit=3), run.path))


def test_what_a_killed_process_left_half_written_is_cleared(model, data, tmp_path):
    run = score_run(find_inputs(config_of(model, data, limit=3), tmp_path / "run"))
    leftover = run.part_folder("tiny", "plain") / ".unfinished-part-00009.parquet.tmp"
    leftover.write_text("half")
    score_run(find_inputs(config_of(model, data, limit=3), run.path, resume=True))
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lane": "bf16"}, r"--lane was fp32 and is now bf16"),
        ({"protocol": "paper"}, r"--protocol was exact and is now paper"),
        ({"backend": "reference"}, "backend"),
        ({"limit": 3}, "--limit"),
        ({"per_token": True}, "--per-token"),
        ({"window_slots": 2048}, "window"),
    ],
)
def test_a_resumed_run_may_not_change_its_meaning(model, data, unbroken, changes, message):
    before = (unbroken / "manifest.json").read_bytes()
    with pytest.raises(RunError, match=message):
        score_run(find_inputs(config_of(model, data, **changes), unbroken, resume=True))
    assert (unbroken / "manifest.json").read_bytes() == before


def test_other_data_are_refused(model, data, tmp_path):
    copy = tmp_path / "prompts.jsonl"
    copy.write_bytes(data.read_bytes())
    score_run(find_inputs(config_of(model, copy), tmp_path / "run"))
    copy.write_text(copy.read_text().replace("Trial 1.", "Trial one.", 1))
    with pytest.raises(RunError, match="transcripts' hash was"):
        score_run(find_inputs(config_of(model, copy), tmp_path / "run", resume=True))


def test_another_model_under_the_same_name_is_refused(model, data, tmp_path):
    changed = make_llama(tmp_path / "tiny", max_position_embeddings=4096)
    run = score_run(find_inputs(config_of(changed, data), tmp_path / "run"))
    next(iter(sorted(run.path.rglob("part-*.parquet")))).unlink()
    make_llama(tmp_path / "tiny", seed=5, max_position_embeddings=4096)
    with pytest.raises(RunError, match="weights of model 'tiny'"):
        score_run(find_inputs(config_of(changed, data), run.path, resume=True))


def test_an_existing_run_is_refused_without_resume(model, data, unbroken):
    with pytest.raises(RunError, match="--resume"):
        score_run(find_inputs(config_of(model, data), unbroken))


def test_the_number_of_tokenising_processes_changes_nothing(model, data, unbroken, tmp_path):
    run = score_run(find_inputs(config_of(model, data, num_workers=2), tmp_path / "run"))
    assert same(unbroken, run.path)


def test_a_folder_that_cannot_be_written_is_named(model, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        score_run(find_inputs(config_of(model, data), tmp_path / "file" / "run"))


def test_a_resumed_run_keeps_its_windows_under_another_limit(model, data, unbroken, tmp_path):
    answers = iter([False, True])
    with pytest.raises(RunInterruptedError):
        score_run(find_inputs(config_of(model, data), tmp_path / "run"), should_stop=lambda: next(answers))
    limited = config_of(model, data, window_slots=None, memory_limit="3GB", weights="streamed")
    run = score_run(find_inputs(limited, tmp_path / "run", resume=True))
    entry = run.read_manifest()["models"]["tiny"]
    assert entry["window_slots"] == 1024 and entry["memory"]["weights"] == "streamed"
    assert same(unbroken, tmp_path / "run")
