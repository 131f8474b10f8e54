"""`psyfast plan`: its counts are the run's own, its arithmetic is checked by hand, and weights need not be there."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from psyfast import forecast as forecast_module
from psyfast.api import score
from psyfast.cli import app
from psyfast.config import ScoreConfig, seconds_of
from psyfast.devices import DEVICES, device_named
from psyfast.errors import ModelError, UsageError
from psyfast.forecast import DEVICE_SHARE, SHARES, START_SECONDS, forecast
from psyfast.model.load.locate import BESIDE_WEIGHTS, HUB_FILES
from psyfast.report.forecast_table import duration
from tests.model.test_adapters import make_adapter
from tests.tiny import make_llama

ROWS = [
    {
        "text": f"You are participant {i}. " + "You press <<J>>. You win. " * (5 + 20 * i),
        "participant": i,
        "options": ["J", "F"],
    }
    for i in range(12)
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def planned(model, data, device=None, **settings):
    (found,) = forecast(ScoreConfig(models=(str(model),), sources=(str(data),), **settings), device)
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"share": False}, {"conditions": ("plain", "no-history")}, {"window_slots": 1024}]
)
def test_the_counts_are_those_of_the_run(tmp_path, data, settings):
    model = make_llama(tmp_path / "model", max_position_embeddings=8192)
    found = planned(model, data, **settings)
    run = score(str(model), data, **settings).manifest
    tokens = list(run["tokens"]["model"].values())
    assert found.counted.num_unique == sum(counts["unique"] for counts in tokens)
    assert found.counted.num_tokens == sum(counts["total"] for counts in tokens)
    assert found.counted.num_responses == run["data"]["num_responses"] == sum(5 + 20 * i for i in range(12))
    assert found.counted.num_transcripts == 12
    if settings.get("share", True):
        assert found.counted.required.total / 1e9 == pytest.approx(run["peak"]["required_gflop"])
    assert found.window_slots == run["models"]["model"]["window_slots"]
    assert found.memory["window"] == run["models"]["model"]["memory"]["bytes_of"]["window"]
    assert found.disk_bytes == (model / "model.safetensors").stat().st_size


def test_memory_has_what_reading_the_data_left(tmp_path, data, monkeypatch):
    model, counts, kept = make_llama(tmp_path / "model", max_position_embeddings=8192), forecast_module._count, []

    def keeping(*arguments):
        kept.append(np.ones(25_000_000))  # 200 MB
        return counts(*arguments)

    before = planned(model, data).memory["process"]
    monkeypatch.setattr(forecast_module, "_count", keeping)
    assert planned(model, data).memory["process"] > before + 150_000_000


def test_time_is_arithmetic_over_a_rate(tmp_path, data):
    found = planned(make_llama(tmp_path / "model", max_position_embeddings=8192), data)
    required = found.counted.required
    seconds = (required.linear - required.spared) / SHARES["linear"]
    seconds += required.attention / SHARES["attention"] + required.head / SHARES["head"]
    assert found.seconds["engine"] == pytest.approx(seconds / (found.peak_gflop_per_s * 1e9))
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()))
    assert found.seconds["start"] == START_SECONDS


def test_another_device_by_its_numbers(tmp_path, data):
    model = make_llama(tmp_path / "model", max_position_embeddings=8192)
    slow, fast = (planned(model, data, device_named(name)) for name in ("A100", "h100"))
    assert slow.seconds["engine"] / fast.seconds["engine"] == pytest.approx(989.4 / 312)
    required = slow.counted.required
    assert slow.seconds["engine"] == pytest.approx((required.total - required.spared) / (312e12 * DEVICE_SHARE))
    in_fp32 = planned(model, data, device_named("a100"), lane="fp32")
    assert in_fp32.seconds["engine"] / slow.seconds["engine"] == pytest.approx(312 / 19.5)
    assert in_fp32.memory["weights"] == 2 * slow.memory["weights"] == 4 * slow.num_params
    with pytest.raises(UsageError, match=f"'h1000' is not known.*{', '.join(DEVICES)}"):
        device_named("h1000")


def test_machines_share_all_but_start_and_load(tmp_path, data):
    found = planned(make_llama(tmp_path / "model", max_position_embeddings=8192), data)
    alone = found.seconds["start"] + found.seconds["load"]
    rest = found.total_seconds - alone
    assert found.machines_for(found.total_seconds + 1e-6) == 1
    assert found.machines_for(alone + rest / 3.5) == 4
    assert alone + rest / 4 <= alone + rest / 3.5
    with pytest.raises(UsageError, match="however many machines"):
        found.machines_for(alone)


def test_weights_need_not_be_there(tmp_path, data):
    model = make_llama(tmp_path / "model", max_position_embeddings=8192)
    with_weights = planned(model, data)
    (model / "model.safetensors").unlink()
    without = planned(model, data)
    assert without.counted.required == with_weights.counted.required
    assert without.num_params == with_weights.num_params
    assert without.disk_bytes == 4 * without.num_params  # its configuration says float32
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    assert planned(model, data).disk_bytes == without.num_params // 2
    for quantised, message in (
        ({"quant_method": "gptq", "bits": "four"}, "'bits' is 'four', expected a positive integer"),
        ({"quant_method": "hqq"}, "quantised with 'hqq' cannot be read"),
        ("gptq", "'quantization_config' is 'gptq', expected an object"),
    ):
        (model / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
        with pytest.raises(ModelError, match=message):
            planned(model, data)
    assert not any("safetensors" in name for name in BESIDE_WEIGHTS) and set(BESIDE_WEIGHTS) < set(HUB_FILES)


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_adapters_in_step_are_planned_as_the_run_has_them(tmp_path, data, weights):
    base = make_llama(tmp_path / "model", max_position_embeddings=8192)
    for name, targets in (("a", ["q_proj", "v_proj"]), ("b", ["up_proj"])):
        make_adapter(base, tmp_path / name, r=2, target_modules=targets)
    names = (f"{base} + {tmp_path / 'a'}", str(base), f"{base} + {tmp_path / 'b'}")
    settings = {"weights": weights, "window_slots": 2048}
    found = forecast(ScoreConfig(models=names, sources=(str(data),), **settings))
    models = score(list(names), data, **settings).manifest["models"]
    assert [one.model_id for one in found] == list(models) == ["model+a", "model", "model+b"]
    for one in found:
        taken = models[one.model_id]["memory"]["bytes_of"]
        assert {part: one.memory[part] for part in ("layers", "head", "reading")} == {
            part: taken[part] for part in ("layers", "head", "reading")
        }
        assert one.num_in_step == 3
    stored, (a, b) = (
        (base / "model.safetensors").stat().st_size,
        ((tmp_path / name).glob("*.safetensors") for name in "ab"),
    )
    passes = found[0].counted.num_windows if weights == "streamed" else 1
    of_adapters = sum(path.stat().st_size for path in (*a, *b))
    assert sum(one.disk_bytes for one in found) == pytest.approx(passes * (stored + of_adapters), abs=3 * passes)
    if weights == "resident":
        alone = planned(base, data, **settings)
        assert alone.memory["layers"] < found[0].memory["layers"] < 2.5 * alone.memory["layers"]
    command = ["plan", str(data), "--model", str(base), "--adapter", f"{tmp_path / 'a'},none,{tmp_path / 'b'}"]
    shown = CliRunner().invoke(app, command)
    assert " ".join(shown.output.split()).count("GB for 3 models in step") == 3, shown.output
    (base / "model.safetensors").unlink()  # they need not be there: the adapters are
    without = forecast(ScoreConfig(models=names, sources=(str(data),), **settings))
    assert [one.memory["layers"] for one in without] == [one.memory["layers"] for one in found]


def test_adapters_that_do_not_fit_together_are_planned_apart(tmp_path, data, monkeypatch):
    base = make_llama(tmp_path / "model", max_position_embeddings=8192)
    make_adapter(base, tmp_path / "a", r=2, target_modules=["q_proj"])
    config = ScoreConfig(models=(str(base), f"{base} + {tmp_path / 'a'}"), sources=(str(data),))
    assert [one.num_in_step for one in forecast(config)] == [2, 2]
    original = forecast_module.planned_memory_of

    def alone(*values, together=None, **settings):
        if together is not None:
            raise UsageError("too much")
        return original(*values, **settings)

    monkeypatch.setattr(forecast_module, "planned_memory_of", alone)
    assert [one.num_in_step for one in forecast(config)] == [1, 1]


def test_weights_that_are_there_must_fit(tmp_path, data):
    model = make_llama(tmp_path / "model", max_position_embeddings=8192)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] + 1}))
    with pytest.raises(ModelError, match=r"mlp\.gate_proj\.weight' has shape"):
        planned(model, data)


def test_a_streamed_model_is_read_once_a_window(tmp_path, data):
    model = make_llama(tmp_path / "model", max_position_embeddings=8192)
    found = planned(model, data, weights="streamed", window_slots=2048)
    assert found.weights == "streamed" and found.counted.num_windows > 3
    assert found.disk_bytes == found.counted.num_windows * (model / "model.safetensors").stat().st_size


def test_of_a_streamed_model_the_head_alone_is_loaded_before(tmp_path, data, monkeypatch):
    monkeypatch.setattr(forecast_module, "LOAD_NS", {"plain": 2e12, "quantised": 0.0})  # nothing else is seen beside it
    model, threads = make_llama(tmp_path / "model", max_position_embeddings=8192), torch.get_num_threads()
    resident, streamed = planned(model, data, weights="resident"), planned(model, data, weights="streamed")
    in_fp32 = planned(model, data, weights="resident", lane="fp32")
    head = resident.traits.vocab_size * resident.traits.hidden_size
    assert resident.seconds["load"] == pytest.approx(2e3 * resident.num_params / threads, rel=1e-3)
    assert streamed.seconds["load"] == pytest.approx(2e3 * head / threads, rel=1e-3)
    assert in_fp32.seconds["load"] == pytest.approx(2 * resident.seconds["load"], rel=1e-3)


def test_what_is_printed(tmp_path, data, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    model = make_llama(tmp_path / "model", max_position_embeddings=8192)
    shown = CliRunner().invoke(app, ["plan", str(data), "--model", str(model), "--within", "2h", "--device", "h100"])
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    for said in ("12 transcripts", "linear", "h100", "is an assumption", "1 such machine for an end within 2h"):
        assert said in " ".join(shown.output.split())
    one = CliRunner().invoke(app, ["plan", str(data), "--model", str(model), "--limit", "1", "--device", "h100"])
    assert "1 transcript, " in one.output and "in 1 window" in " ".join(one.output.split())
    as_json = CliRunner().invoke(app, ["plan", str(data), "--model", str(model), "--json"])
    (row,) = json.loads(as_json.output)
    assert row["machines"] is None and row["counted"]["num_transcripts"] == 12 and row["total_seconds"] > START_SECONDS


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("2d", 172_800)])
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "0h", "-1h", "soon", "1e3s"])
def test_what_is_no_time(text):
    with pytest.raises(UsageError, match="is not a time"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (360_000, "4 d 4 h"), (59.9, "60 s")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_threads_are_as_they_were(tmp_path, data):
    before = torch.get_num_threads()
    planned(make_llama(tmp_path / "model", max_position_embeddings=8192), data, threads=1)
    assert torch.get_num_threads() == before
