"""Adapters of one base in one run: the same bits as each alone, with the base read once a layer for all."""

import json
import shutil
import weakref
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from psyfast import model_run
from psyfast.api import load_result, score, score_again
from psyfast.cli import app
from psyfast.model.load import model as loading
from psyfast.model.load.locate import locate
from psyfast.model.load.tensors import SafetensorsFiles
from psyfast.model.load.weights import loading_threads
from psyfast.ops.registry import resolve
from psyfast.scoring import threads
from tests.model.test_adapters import make_adapter
from tests.tiny import make_llama

ROWS = [{"text": f"You are {i}. " + "You press <<J>>. You win. " * (4 + 9 * i), "participant": i} for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = make_llama(folder / "base", max_position_embeddings=4096)
    make_adapter(base, folder / "a", r=4, target_modules=["q_proj", "down_proj"])
    make_adapter(base, folder / "b", r=3, target_modules="all-linear", modules_to_save=["lm_head", "norm"])
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def names_of(folder):
    base = str(folder / "base")
    return [f"{base} + {folder / 'a'}", base, f"{base} + {folder / 'b'}"]


@pytest.fixture
def rows_read(monkeypatch):
    """How many rows of each tensor of the base's layers were read from its file."""
    read, original = Counter(), SafetensorsFiles.read_into

    def counting(self, name, out, first_row=0):
        if out.dim() == 2 and ".layers." in name and not name.startswith("base_model"):
            read[name] += len(out)
        original(self, name, out, first_row)

    monkeypatch.setattr(SafetensorsFiles, "read_into", counting)
    return read


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_the_bits_of_each_alone_and_one_reading(folder, weights, rows_read):
    settings = {"weights": weights, "window_slots": 1024, "conditions": ("plain", "no-history")}
    alone = {name: score(name, folder / "data.jsonl", **settings) for name in names_of(folder)}
    rows_of_one = Counter(rows_read)
    rows_read.clear()
    together = score(names_of(folder), folder / "data.jsonl", **settings)
    assert set(rows_read) == set(rows_of_one) and len(rows_read) == 3 * 7
    for name, rows in rows_read.items():
        assert 3 * rows == rows_of_one[name], name  # once for the three, where three runs read it three times
    ids = set()
    for result in alone.values():
        (model_id,) = result.manifest["models"]
        ids.add(model_id)
        mine = together.responses.filter([value == model_id for value in together.responses["model"].to_pylist()])
        assert mine.equals(result.responses)
        assert together.manifest["tokens"][model_id] == result.manifest["tokens"][model_id]
    assert ids == {"base", "base+a", "base+b"} == set(together.manifest["models"])
    nlls = [tuple(result.responses["nll_nats"].to_pylist()) for result in alone.values()]
    assert len(set(nlls)) == 3
    assert together.manifest["models"]["base+a"]["adapters"] == [str(folder / "a")]
    assert together.manifest["models"]["base"]["adapters"] == []
    hashes = [together.manifest["models"][name]["weights_sha256"] for name in ("base", "base+a", "base+b")]
    assert hashes[0].keys() < hashes[1].keys() and hashes[1] != hashes[2]


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_a_run_that_lacks_parts_of_one_goes_on_without_the_others(folder, tmp_path, weights):
    whole = score(names_of(folder), folder / "data.jsonl", out=tmp_path / "run", weights=weights, window_slots=1024)
    parts = [path for path in sorted((tmp_path / "run").rglob("*")) if path.is_file() and "base+a" in str(path)]
    assert len(parts) >= 4
    for part in parts[::2]:
        part.unlink()
    again = score(
        names_of(folder), folder / "data.jsonl", out=tmp_path / "run", resume=True, weights=weights, window_slots=1024
    )
    by = [("model", "ascending"), ("study", "ascending"), ("participant", "ascending"), ("response_idx", "ascending")]
    assert again.responses.sort_by(by).equals(whole.responses.sort_by(by))


@pytest.mark.parametrize("num_threads", [1, 3, 8])
def test_one_reading_by_however_many_threads(tmp_path, rows_read, num_threads):
    base = make_llama(tmp_path / "base", num_hidden_layers=9, intermediate_size=1100)
    files = SafetensorsFiles(base)
    of_layers = {name: shape[0] for name, shape in files.shapes.items() if ".layers." in name and len(shape) == 2}
    with threads(num_threads):
        loading.load_together([locate(str(base))] * 3, resolve())
    assert rows_read == of_layers


def test_what_adapters_take_together_is_planned(folder, tmp_path):
    settings = {"window_slots": 1024, "weights": "resident"}
    names = names_of(folder)
    one = score(names[0], folder / "data.jsonl", **settings).manifest["models"]["base+a"]["memory"]["bytes_of"]
    together = score(names, folder / "data.jsonl", **settings).manifest["models"]["base+a"]["memory"]["bytes_of"]
    attn_in, attn_out, mlp = 10 * 64 * 48, 64 * 48, 2 * 96 * 48 + 64 * 96  # numbers as they are packed
    assert one["layers"] == 3 * 2 * (attn_in + attn_out + mlp)
    assert together["layers"] == 3 * 2 * (3 * attn_in + 2 * attn_out + 3 * mlp)  # o_proj is b's own
    assert together["head"] == 2 * one["head"]  # the base's, and that of the adapter that brings one
    of_layers = [shape for name, shape in SafetensorsFiles(folder / "base").shapes.items() if ".layers.0." in name]
    kept = 4 * sum(shape[0] * shape[1] for shape in of_layers if len(shape) == 2)
    assert together["reading"] == one["reading"] + min(3, loading_threads()) * kept  # of each layer under way, in fp32
    assert together["window"] > one["window"]
    streamed = score(names, folder / "data.jsonl", window_slots=1024, weights="streamed")
    streamed = streamed.manifest["models"]["base+a"]["memory"]
    assert streamed["read_ahead"] == 1
    assert streamed["bytes_of"]["layers"] == (one["layers"] + together["layers"]) / 3
    assert streamed["bytes_of"]["reading"] == one["reading"] + kept


def test_from_the_command_line_and_again_from_the_manifest(folder, tmp_path):
    command = ["score", str(folder / "data.jsonl"), "--model", str(folder / "base"), "-o", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*command, "--adapter", f"{folder / 'a'},none", "--adapter", str(folder / "b")])
    assert done.exit_code == 0, done.output
    assert set(load_result(tmp_path / "run").manifest["models"]) == {"base", "base+a", "base+b"}
    run, compared = score_again(tmp_path / "run" / "manifest.json", tmp_path / "again")
    assert compared is not None and compared.same_bits
    assert set(load_result(run.path).manifest["models"]) == {"base", "base+a", "base+b"}


def test_adapters_that_do_not_fit_together_are_scored_one_after_the_other(folder, tmp_path, monkeypatch):
    from psyfast import scoring

    groups, original = [], scoring.open_together

    def seen(runs, recorded):
        groups.append(len(runs))
        return original(runs, recorded)

    monkeypatch.setattr(scoring, "open_together", seen)
    together = score(names_of(folder), folder / "data.jsonl")
    monkeypatch.setattr(scoring, "_fit", lambda group, known: False)
    apart = score(names_of(folder), folder / "data.jsonl")
    assert groups == [3, 1, 1, 1]
    assert apart.responses.equals(together.responses)


def test_other_bases_stand_between(folder, tmp_path):
    other = Path(shutil.copytree(folder / "base", tmp_path / "other"))
    names = [*names_of(folder)[:2], f"{other} + {folder / 'a'}"]
    result = score(names, folder / "data.jsonl")
    nlls = {}
    for row in result.responses.select(["model", "nll_nats"]).to_pylist():
        nlls.setdefault(row["model"], []).append(row["nll_nats"])
    assert nlls["base+a"] == nlls["other+a"] != nlls["base"]


def test_models_of_one_reading_have_one_base(folder):
    with pytest.raises(AssertionError):
        loading.load_together([locate(str(folder / "base")), locate("smollm2-135m-instruct")], resolve())


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_models_that_are_scored_one_after_the_other_are_not_in_memory_together(folder, monkeypatch, weights):
    """Nothing is left of the first when the second is loaded, which memory was planned without."""
    other = make_llama(folder / f"other {weights}", seed=1, max_position_embeddings=4096)
    alive, original = [], model_run.load_together

    def watched(*args, **kwargs):
        assert not [one for one in alive if one() is not None]
        loaded = original(*args, **kwargs)
        alive.extend(weakref.ref(one.weights) for one in loaded)
        return loaded

    monkeypatch.setattr(model_run, "load_together", watched)
    result = score([*names_of(folder), str(other)], folder / "data.jsonl", weights=weights)
    assert len(alive) == 4 and len(result.manifest["models"]) == 4
