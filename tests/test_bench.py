"""The end-to-end benchmark on a tiny random model: its workers' protocol, its errors, and the files it leaves."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from psyfast.model.load.config import traits_from_config
from psyfast.model.load.locate import locate
from psyfast.model.load.model import open_model
from psyfast.model.load.tokenizer import load_tokenizer
from tests.tiny import make_llama

BENCH = Path(__file__).resolve().parents[1] / "bench"


def run_bench(*arguments):
    command = [sys.executable, BENCH / "bench_end_to_end.py", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "mine.jsonl"
    text = "You choose between J and F.\n" + "You press <<J>>. You win 3 points.\nYou press <<F>>.\n" * 8
    path.write_text("".join(json.dumps({"text": text[: -12 * i or None], "participant": i}) + "\n" for i in range(2)))
    return path


@pytest.fixture(scope="module")
def results(model, data, tmp_path_factory):
    """A run of every kind of case and every contender that needs no environment of its own."""
    out, work = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("work")
    names = "psyfast-bf16 psyfast-fp32 psyfast-pairs-bf16 psyfast-requests-bf16 transformers-bf16"
    kinds = "plain lengths options pairs growth"
    arguments = ["--contenders", *names.split(), "--cases", *kinds.split(), "--grown", 128, 256]
    arguments += ["--protocol", "exact", "--threads", 1, "--repeats", 1, "-o", out, "--work", work]
    done = run_bench(data, "--model", model, *arguments)
    assert done.returncode == 0, done.stderr
    return out, work, json.loads((out / "end_to_end.json").read_text())


def test_errors_against_fp32(results):
    *_, document = results
    errors = {(row["contender"], row["case"]): row for row in document["errors"]}
    assert {case for _, case in errors} == {"plain", "alone-0", "alone-1"}
    assert all(row["num_responses"] > 0 and row["num_not_finite"] == 0 for row in errors.values())
    assert errors["psyfast-fp32", "plain"]["max_abs_nats"] < 1e-4
    ours, theirs = (errors[name, "plain"]["mean_abs_nats"] for name in ("psyfast-bf16", "transformers-bf16"))
    assert 0 < ours < theirs


def test_every_contender_is_timed_on_its_cases(results):
    *_, document = results
    rows = {(row["contender"], row["case"]): row for row in document["timings"]}
    cases = document["cases"]
    assert {case for name, case in rows if name == "psyfast-bf16"} == set(cases) - {"requests", "pairs"}
    assert {case for name, case in rows if name == "transformers-bf16"} == {"plain", "alone-0", "alone-1"}
    assert cases["plain"]["num_tokens"] == cases["alone-0"]["num_tokens"] + cases["alone-1"]["num_tokens"]
    assert cases["grown-128"]["num_tokens"] <= 128 < cases["grown-256"]["num_tokens"] <= 256
    for row in rows.values():
        assert row["rounds"] == 1 and row["wall_s"] > 0 and row["cpu_s"] > 0 and row["load_wall_s"] > 0
        assert row["tok_per_s"] == pytest.approx(cases[row["case"]]["num_tokens"] / row["wall_s"])
        assert 2e7 < row["peak_rss_bytes"] < 3e9
    assert document["failures"] == {}


def test_options_are_four_of_two_tokens(results):
    *_, document = results
    (figures,) = document["options"]
    assert figures["num_options"] == 4 * document["cases"]["without-options"]["num_responses"]
    assert document["cases"]["requests"]["num_scored_tokens"] == 2 * figures["num_requests_run"]
    (requests,) = (row for row in document["timings"] if row["case"] == "requests")
    of_those_run = figures["num_options"] / figures["num_requests_run"]  # evenly spread: nearly so in operations too
    assert figures["one_by_one_cpu_s_extrapolated"] / requests["cpu_s"] == pytest.approx(of_those_run, rel=0.2)
    ratio = figures["one_by_one_cpu_s_extrapolated"] / figures["with_options_cpu_s"]
    assert figures["ratio_one_by_one"] == pytest.approx(ratio)


def test_pairs_are_the_responses_of_one_transcript(results):
    *_, document = results
    (figures,) = document["pairs"]
    assert figures["ratio"] == pytest.approx(figures["pairs_cpu_s"] / figures["one_pass_cpu_s"])
    assert document["cases"]["pairs"]["num_responses"] == document["cases"]["one-pass"]["num_responses"] > 10


def test_the_table_says_what_it_was_measured_with(results):
    out, _, document = results
    text = (out / "end_to_end.md").read_text()
    for said in ("`psyfast-bf16`", "`transformers-bf16`", document["command"], document["commit"], "tiny-bf16"):
        assert said in text
    assert {"hardware", "system", "versions", "started", "runs"} <= set(document)
    assert all(peak > 0 for lane in document["peak_gflop_per_s"]["1"].values() for peak in lane.values())


def test_required_operations_are_those_of_the_definition(results):
    facts = results[2]["cases"]["alone-0"]
    layers, D, F, heads, kv_heads, E, V = 3, 48, 96, 6, 2, 8, 400  # tests/tiny.py
    weights = layers * D * ((2 * heads + 2 * kv_heads) * E + 3 * F)
    T = facts["num_tokens"]

    def flop(num_tokens):
        pairs = num_tokens * (num_tokens + 1) // 2
        return 2 * weights * num_tokens + 4 * E * heads * layers * pairs + 2 * D * V * facts["num_scored_tokens"]

    # tokens behind the last scored one require nothing
    assert flop(T - 30) < 1e9 * facts["gflop"] <= flop(T)


def test_all_read_the_same_bf16_weights(results, model):
    _, work, _ = results
    _, theirs = open_model(locate(str(work / "tiny-bf16")))
    _, original = open_model(locate(str(model)))
    assert theirs.stored_as() == ("BF16",)
    for name in original.shapes:
        assert torch.equal(theirs.read(name), original.read(name).bfloat16())


def test_a_gguf_file_of_the_same_weights(model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from end_to_end.gguf_file import write_gguf

    _, original = open_model(locate(str(model)))
    traits, written = open_model(locate(str(write_gguf(model, tmp_path))))
    expected_traits, _ = open_model(locate(str(model)))
    assert replace(traits, norm_eps=1e-6) == expected_traits
    assert traits.norm_eps == pytest.approx(1e-6)  # GGUF stores it in fp32
    for name, shape in original.shapes.items():
        assert written.shapes[name] == shape
        expected = original.read(name) if len(shape) == 1 else original.read(name).bfloat16().float()
        np.testing.assert_array_equal(written.read(name).float().numpy(), expected.numpy())


def test_a_shape_of_random_weights_is_what_its_configuration_says(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from end_to_end.models import SHAPES, config_of

    for name, traits in SHAPES.items():
        assert traits_from_config(config_of(traits), name) == traits


def test_eager_experts_take_part_where_there_are_some(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from bench_end_to_end import chosen

    taking_part = [
        {one.name for one in chosen(Namespace(contenders=None, peers=BENCH / "none"), has_experts=has)}
        for has in (False, True)
    ]
    assert taking_part[1] - taking_part[0] == {f"transformers-{lane}-kept-eager" for lane in ("bf16", "fp32")}
    assert taking_part[0] < taking_part[1]


def test_medians_spreads_and_errors_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from end_to_end.cases import Case
    from end_to_end.measures import errors, timings
    from end_to_end.rounds import Run

    def run(wall):
        seconds = {"wall": wall, "cpu": 2 * wall, "peak_rss_bytes": 10**9}
        result = {"loading": {"wall": 3.0, "cpu": 1.0}, "cases": {"plain": seconds}}
        return Run("other", 2, 0, 0.5, result, {})

    sequence = {"ids": list(range(10)), "spans": [[1, 3], [4, 5], [6, 8]]}
    case = Case("plain", "plain", "nowhere", "exact", None, (sequence,))
    (row,) = timings([run(wall) for wall in (4.0, 1.0, 2.0)], {"plain": {"num_tokens": 10, "gflop": 8.0}})
    assert (row["wall_s"], row["cpu_s"], row["wall_spread"], row["rounds"]) == (2.0, 4.0, 1.5, 3)
    assert (row["tok_per_s"], row["gflop_per_cpu_s"], row["load_wall_s"]) == (5.0, 2.0, 3.0)
    nll, truth = np.array([1.0, 2.0, 3.0, np.nan, 1.0]), np.array([1.5, 2.0, 2.0, 1.0, 1.0])
    error = errors("other", case, nll, truth)
    assert (error["num_responses"], error["num_not_finite"]) == (2, 1)  # responses of 2, 1 and 2 tokens
    assert (error["mean_abs_nats"], error["max_abs_nats"], error["mean_signed_nats"]) == (0.75, 1.0, 0.25)


def test_a_contender_that_is_not_installed_is_refused(model, data, tmp_path):
    arguments = ["--contenders", "vllm-bf16", "--peers", tmp_path / "nowhere", "-o", tmp_path / "out"]
    done = run_bench(data, "--model", model, *arguments)
    assert done.returncode != 0 and "not installed" in done.stderr and "make bench-peers" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_gguf_model_becomes_a_folder_that_everybody_reads(tmp_path):
    code = (
        "import sys; from pathlib import Path; from end_to_end.models import bf16_folder; "
        "print(bf16_folder('smollm2-135m-instruct', Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=False, capture_output=True, text=True, cwd=BENCH
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    _, files = open_model(locate(str(folder)))
    assert set(files.stored_as()) == {"BF16"}
    text = "You press <<J>>. You win 3 points.\n\nYou press <<F>>."
    ids = [load_tokenizer(name)(text)["input_ids"] for name in ("smollm2-135m-instruct", str(folder))]
    assert ids[0] == ids[1]


def test_the_simulation_of_comparisons_covers_and_its_control_does_not(tmp_path):
    few = ["--simulations", 100, "--studies", 2, "--participants", 60, "-o", tmp_path / "compare.json"]
    command = [sys.executable, BENCH / "bench_compare.py", *map(str, few)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cells = json.loads((tmp_path / "compare.json").read_text())["cells"]
    assert {cell["distribution"] for cell in cells} == {"normal", "t3", "lognormal"}
    normal = [cell for cell in cells if cell["distribution"] == "normal"]
    assert all(max(cell["missed"]) < 0.1 < cell["missed_fixed"] for cell in normal)
    assert all(cell["looks"] > 0 and 0 < min(cell["share_drawn"]) < max(cell["share_drawn"]) <= 1 for cell in normal)
    assert [line.split(" | ")[:2] for line in done.stdout.splitlines()[2:]] == [
        ["| 2", "60"],
        ["| 2", "5 to 100"],
        ["| 2", "5, one 100"],
    ]
