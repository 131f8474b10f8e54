"""psyfast compare from end to end on tiny models: what it estimates, where it stops, what it leaves, how it goes on."""

import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import psyfast
from psyfast.config import ScoreConfig
from psyfast.data.drawing_order import drawn
from psyfast.errors import DataError, ModelError, RunError, RunInterruptedError, UsageError
from psyfast.inputs import find_inputs
from psyfast.metrics.anytime import AnytimeMean
from psyfast.metrics.comparison import CompareGoal
from psyfast.metrics.compute import compute_metrics
from psyfast.store.reading import compare_runs
from tests.test_cli import psyfast as command
from tests.tiny import make_llama

SIZES = {"one": 34, "two": 22, "three": 8}


def text(rng, num):
    return "You choose between A and B.\n" + "".join(f"You press <<{rng.choice('AB')}>>.\n" for _ in range(num))


def rows():
    rng = random.Random(0)
    return [
        {
            "study": study,
            "participant": i,
            "text": text(rng, rng.randrange(1, 6)),
            "age": str(20 + i) if i % 2 else "N/A",
        }
        for study, size in SIZES.items()
        for i in range(size)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random models, and the first again with a little noise."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models")
    base, post = make_llama(folder / "base"), make_llama(folder / "post", seed=1)
    near = Path(shutil.copytree(base, folder / "near"))
    weights = load_file(near / "model.safetensors")
    weights["lm_head.weight"] += 0.003 * weights["lm_head.weight"].flip(0)
    save_file(weights, near / "model.safetensors", metadata={"format": "pt"})
    return {"base": str(base), "post": str(post), "near": str(near)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(scope="module")
def differences(models, data):
    """By participant, post − base: recomputed from a full run of both."""
    frame = psyfast.score([models["base"], models["post"]], data, lane="fp32").to_pandas()
    wide = frame.pivot(index=["study", "experiment", "participant", "response_idx"], columns="model", values="nll_nats")
    return (wide["post"] - wide["base"]).groupby(level=["study", "experiment", "participant"], sort=False).mean()


def compare(models, data, **changes):
    settings = {"until": 1e-9, "stop_at_sign": False, "lane": "fp32", **changes}
    return psyfast.compare(models["base"], models[settings.pop("post", "post")], data, **settings)


def test_over_everybody_it_is_the_mean_over_studies_of_the_mean_over_participants(models, data, differences):
    found = compare(models, data)
    by_study = differences.groupby("study").mean()
    assert found.decision == "complete" and found.share_of_participants == found.share_of_text == 1
    assert found.estimate == pytest.approx(by_study.mean(), abs=1e-12)
    assert found.interval == (found.estimate, found.estimate)
    assert {s.study: s.mean_nats for s in found.studies} == pytest.approx(by_study.to_dict(), abs=1e-12)
    assert found.folder is None


def test_every_look_is_the_confidence_sequence_over_the_drawing(models, data, differences):
    found = compare(models, data, until=0.01, level=0.9, every=5, seed=3)
    keys = [(row["study"], row["study"], str(row["participant"])) for row in rows()]
    order, studies = [keys[i] for i in drawn(keys, 3)], list(SIZES)
    mean, done = AnytimeMean(list(SIZES.values())), 0
    assert [look.num_scored for look in found.looks] == [*range(found.looks[0].num_scored, 64, 5), 64]
    for look in found.looks:
        for key in order[done : look.num_scored]:
            mean.add(studies.index(key[0]), differences[key])
        done = look.num_scored
        assert look.estimate == pytest.approx(float(mean.estimate), abs=1e-12)
        expected = float(mean.half_width(0.01, 0.9))
        assert look.half_width == (pytest.approx(expected, rel=1e-9) if math.isfinite(expected) else None)
    assert len(found.looks) > 3 and compare(models, data, seed=4, max_participants=10).looks[0] != found.looks[0]


def test_it_stops_at_the_sign_and_leaves_a_run_of_those_it_scored(models, data, tmp_path):
    found = compare(models, data, stop_at_sign=True, until=0.05, out=tmp_path / "run")
    assert found.decision == "sign" and found.looks[-1].sign != 0
    num = found.looks[-1].num_scored
    assert num < 64 and all(look.sign == 0 for look in found.looks[:-1])
    participants = pq.read_table(tmp_path / "run" / "participants.parquet")
    assert participants.num_rows == num == len({*zip(participants["study"], participants["participant"], strict=True)})
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["compare"]["looks"][-1]["num_scored"] == num
    assert manifest["compare"]["num_participants"] == manifest["data"]["num_transcripts"] == 64
    metrics = compute_metrics([tmp_path / "run"])
    assert metrics.tables["models"]["num_participants"].to_list() == [num, num]
    assert f"a comparison that stopped after {num} of 64 participants" in metrics.notes[0]


def test_streamed_weights_and_fewer_threads_give_the_same_looks(models, data):
    resident = compare(models, data, max_participants=45, threads=1)
    assert compare(models, data, max_participants=45, weights="streamed", threads=2).looks == resident.looks


def test_it_stops_where_the_interval_is_narrow_enough(models, data):
    found = compare(models, data, post="near", until=0.5)
    assert found.decision == "precise" and found.looks[-1].half_width < 0.5
    assert len(found.looks) == 1 and found.share_of_participants < 1
    assert re.fullmatch(
        r"ModelComparison\(near − base: .\d\.\d+ ± 0\.\d+ nats; precise after 4\d of 64 participants\)", repr(found)
    )


def test_a_limit_stops_it_and_a_resumed_run_goes_on(models, data, tmp_path):
    limited = compare(models, data, out=tmp_path / "run", max_participants=20)
    assert limited.decision == "limit" and limited.looks[-1].num_scored == 20
    assert limited.looks[-1].half_width is None and limited.interval is None
    assert pq.read_table(tmp_path / "run" / "participants.parquet").num_rows == 20
    whole = compare(models, data, out=tmp_path / "run", resume=True)
    assert whole.decision == "complete" and whole.estimate == compare(models, data).estimate
    assert pq.read_table(tmp_path / "run" / "participants.parquet").num_rows == 64
    with pytest.raises(RunError, match="64 participants were scored already, more than --max-participants 20"):
        compare(models, data, out=tmp_path / "run", resume=True, max_participants=20)


def run_parts(models, data, out, stop_after=None, **changes):
    """A comparison in small windows, stopped after some parts."""
    from psyfast.comparison import compare_run

    config = ScoreConfig((models["base"], models["post"]), (str(data),), lane="fp32", window_slots=1024, **changes)
    inputs = find_inputs(config, out, resume=out.exists())
    answers = iter([False] * (stop_after or 0) + [True] if stop_after is not None else [])
    return compare_run(inputs, CompareGoal(0.05, every=3), should_stop=lambda: next(answers, False))


@pytest.mark.parametrize("stop_after", [0, 2, 5, 7])
def test_stopped_and_resumed_it_is_the_unbroken_run(models, data, tmp_path, stop_after):
    unbroken = run_parts(models, data, tmp_path / "unbroken")
    with pytest.raises(RunInterruptedError, match="--resume"):
        run_parts(models, data, tmp_path / "run", stop_after)
    with pytest.raises(RunError, match=r"its status is 'running'.*psyfast compare --resume finishes it"):
        compute_metrics([tmp_path / "run"])
    resumed = run_parts(models, data, tmp_path / "run")
    assert resumed.looks == unbroken.looks and resumed.decision == unbroken.decision
    assert compare_runs(tmp_path / "unbroken", tmp_path / "run").same_bits
    again = run_parts(models, data, tmp_path / "run")
    assert again.looks == unbroken.looks


def test_a_missing_part_is_made_again(models, data, tmp_path):
    whole = run_parts(models, data, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "broken")
    for part in sorted((tmp_path / "broken").rglob("part-*.parquet"))[1:4]:
        part.unlink()
    assert run_parts(models, data, tmp_path / "broken").looks == whole.looks
    assert compare_runs(tmp_path / "run", tmp_path / "broken").same_bits


def test_what_may_not_change_on_the_way(models, data, tmp_path):
    run = tmp_path / "run"
    compare(models, data, out=run, max_participants=5)
    for changes, message in [
        ({"until": 0.3}, "--until was 1e-09 and is now 0.3"),
        ({"level": 0.9}, "--level was 0.95 and is now 0.9"),
        ({"seed": 1}, "--seed was 0 and is now 1"),
        ({"every": 2}, "--every was None and is now 2"),
        ({"post": "near"}, "the second model of the comparison was post and is now near"),
        ({"protocol": "paper"}, "--protocol was exact and is now paper"),
    ]:
        with pytest.raises(RunError, match=message):
            compare(models, data, out=run, resume=True, **changes)
    with pytest.raises(RunError, match="was made by psyfast compare"):
        psyfast.score(models["base"], data, lane="fp32", out=run, resume=True)
    again = command("score", "--from-manifest", run / "manifest.json", "-o", tmp_path / "again")
    assert again.returncode == 2 and "was made by psyfast compare" in again.stderr
    psyfast.score([models["base"], models["post"]], data, lane="fp32", out=tmp_path / "scored")
    with pytest.raises(RunError, match="holds a run of psyfast score"):
        compare(models, data, out=tmp_path / "scored", resume=True)


def test_who_has_no_response_that_both_scored_is_left_out(models):
    """Long texts pass the context before their first response; one marks none; of a study nobody is left."""
    rng = random.Random(1)
    many = [{"study": "s", "participant": i, "text": text(rng, 3)} for i in range(45)]
    long = [{"study": "s", "participant": f"long{i}", "text": "word " * 300 + "<<A>>"} for i in range(5)]
    gone = [{"study": "gone", "participant": i, "text": "word " * 300 + "<<A>>"} for i in range(3)]
    silent = [{"study": "s", "participant": "silent", "text": "Nothing."}]
    found = compare(models, [*many, *long, *gone, *silent], context_limit=200)
    last = found.looks[-1]
    assert (last.num_scored, last.num_compared, found.num_without_responses) == (53, 45, 1)
    assert found.estimate == pytest.approx(compare(models, many, context_limit=200).estimate, abs=1e-12)
    assert [(s.study, s.num_compared, s.mean_nats) for s in found.studies[1:]] == [("gone", 0, None)]
    with pytest.raises(DataError, match="none of 8 participants has a response that both models scored"):
        compare(models, [*long, *gone], context_limit=50)


def test_under_a_condition(models, data):
    """Half of the participants have a persona."""
    found = compare(models, data, condition="persona")
    assert found.looks[-1].num_compared == 32 and found.decision == "complete"
    assert found.estimate != compare(models, data).estimate


def test_models_that_cannot_be_held_against_each_other(models, data, tmp_path):
    copy = shutil.copytree(models["base"], tmp_path / "copy")
    with pytest.raises(UsageError, match="are the same model; name two that differ"):
        psyfast.compare(models["base"], str(copy), data, until=0.1)
    with pytest.raises(UsageError, match="2 of the models are called 'base'"):
        psyfast.compare(models["base"], models["base"], data, until=0.1)
    with pytest.raises(ModelError, match="nowhere"):
        psyfast.compare(models["base"], str(tmp_path / "nowhere"), data, until=0.1)
    nan = make_llama(tmp_path / "nan", seed=2)
    from safetensors.torch import load_file, save_file

    weights = load_file(nan / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][:] = 3e38  # finite, its products are not
    save_file(weights, nan / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="has a response that both models scored"):
        psyfast.compare(models["base"], str(nan), data, until=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": 0}, "until is 0, expected a half-width above 0"),
        ({"until": -0.1}, "until is -0.1"),
        ({"until": math.nan}, "until is nan"),
        ({"level": 1.0}, "level is 1.0, expected a share"),
        ({"max_participants": 0}, "max_participants is 0, expected 1 participant or more"),
        ({"every": -1}, "every is -1"),
        ({"condition": "loud"}, "loud"),
        ({"colour": "red"}, "colour"),
        ({"memory_limit": "400MB"}, "two models at once, each with half of the memory"),
    ],
)
def test_settings_that_cannot_be_meant(models, data, settings, message):
    with pytest.raises(UsageError, match=message):
        compare(models, data, **settings)


def test_a_single_participant_is_no_drawing(models):
    with pytest.raises(DataError, match="1 participant has a marked response, expected 2 or more"):
        compare(models, [{"text": "You press <<A>>.", "participant": 1}, {"text": "Nothing.", "participant": 2}])


def test_the_command_shows_what_it_found(models, data, tmp_path):
    done = command(
        "compare", models["base"], models["post"], data, "--until", "0.05", "-o", tmp_path / "run", "--lane", "fp32"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if "Results" not in line)
    assert "all (mean)" in done.stdout and re.search(r"Stopped after look \d+: the interval excludes 0\.", done.stdout)
    assert f"Results: {tmp_path / 'run'}" in done.stdout
    resumed = command(
        "compare",
        models["base"],
        models["post"],
        data,
        "--until",
        "0.05",
        "-o",
        tmp_path / "run",
        "--lane",
        "fp32",
        "--resume",
        "--json",
    )
    document = json.loads(resumed.stdout)
    assert document["decision"] == "sign" and document["run"] == str(tmp_path / "run")
    assert np.sign(document["looks"][-1]["estimate"]) != 0
    assert document["goal"] == {
        "until": 0.05,
        "level": 0.95,
        "stop_at_sign": True,
        "max_participants": None,
        "every": None,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{out}"], "give --until NATS"),
        (["--until", "0.02"], "give -o RUN"),
        (["--until", "0", "-o", "{out}"], "until is 0.0, expected a half-width above 0"),
        (["--until", "0.02", "--options", "all", "-o", "{out}"], "--options is 'all'"),
        (["--until", "0.02", "--study", "four", "-o", "{out}"], "study 'four' does not occur"),
    ],
)
def test_mistakes_exit_with_2(models, data, tmp_path, arguments, message):
    filled = [argument.format(out=tmp_path / "run") for argument in arguments]
    done = command("compare", models["base"], models["post"], data, *filled)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_result_survives_its_manifest(models, data):
    found = compare(models, data, max_participants=7)
    document = json.loads(json.dumps(found.to_dict()))
    assert type(found).from_dict(document) == found
    with pytest.raises(RunError, match="was it edited"):
        type(found).from_dict({**document, "looks": [{"estimate": 1}]})
    assert replace(found, folder=Path("x")).to_dict() == found.to_dict()
