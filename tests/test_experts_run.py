"""Models with experts from text to rows: streamed as resident, planned as run, adapted as merged by hand."""

import itertools
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from psyfast.api import score
from psyfast.config import ScoreConfig
from psyfast.forecast import forecast
from psyfast.model.load.locate import locate
from psyfast.model.load.model import open_model
from tests.family_cases import CASES
from tests.family_models import make_case, transformers_nlls
from tests.model.test_adapters import make_adapter, nlls

QWEN, MIXTRAL = "qwen3 moe, normalised, rows of whole blocks", "mixtral, windows, heads of 80"
ROWS = [{"text": f"You are {i}. " + "You press <<J>>. You win. " * (4 + 9 * i), "participant": i} for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    make_case(folder / "qwen", QWEN, max_position_embeddings=4096)
    make_case(folder / "mixtral", MIXTRAL, max_position_embeddings=4096)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def rows_of(result):
    return sorted(result.responses.to_pylist(), key=lambda row: (row["participant"], row["token_start"]))


@pytest.mark.parametrize("model", ["qwen", "mixtral"])
def test_every_response_is_transformers_own(folder, model):
    """From text to rows, over transcripts longer than a window and than a page, their beginnings shared."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / model)
    architecture = CASES[{"qwen": QWEN, "mixtral": MIXTRAL}[model]][0]
    rows = rows_of(score(str(folder / model), folder / "data.jsonl", lane="fp32"))
    assert len(rows) == sum(4 + 9 * i for i in range(5))
    for participant, line in enumerate(ROWS):
        pieces = tokenizer(re.split("(?<=<<)|(?=>>)", line["text"]), add_special_tokens=False).input_ids
        ids = [tokenizer.bos_token_id, *itertools.chain(*pieces)]
        wanted = transformers_nlls(folder / model, architecture, ids)
        mine = [row for row in rows if row["participant"] == str(participant)]
        assert len(mine) == 4 + 9 * participant
        for row in mine:
            of_row = float(wanted[row["token_start"] - 1 : row["token_stop"] - 1].sum())
            assert row["nll_nats"] == pytest.approx(of_row, abs=1e-4)


@pytest.mark.parametrize("lane", ["fp32", "bf16"])
def test_streamed_and_in_small_windows_the_same_bits(folder, lane):
    resident = score(str(folder / "qwen"), folder / "data.jsonl", lane=lane)
    for settings in ({"weights": "streamed"}, {"weights": "streamed", "window_slots": 1024}, {"share": False}):
        assert rows_of(score(str(folder / "qwen"), folder / "data.jsonl", lane=lane, **settings)) == rows_of(resident)


def test_what_is_planned_is_what_is_run(folder):
    """Operations of the router and of the experts that a token uses, bytes of all experts."""
    (planned,) = forecast(ScoreConfig(models=(str(folder / "qwen"),), sources=(str(folder / "data.jsonl"),)), None)
    run = score(str(folder / "qwen"), folder / "data.jsonl").manifest
    assert planned.counted.required.total / 1e9 == pytest.approx(run["peak"]["required_gflop"])
    of_attention, router, of_expert = 96 * (2 * 192 + 2 * 64), 96 * 6, 3 * 96 * 64
    a_token = 4 * (of_attention + router + 2 * of_expert)
    assert planned.counted.required.linear == 2 * a_token * planned.counted.num_unique
    assert planned.disk_bytes == (folder / "qwen" / "model.safetensors").stat().st_size


def test_adapters_of_attention_score_as_peft_computes_them(folder, tmp_path):
    base = folder / "qwen"
    wanted = make_adapter(base, tmp_path / "lora", r=4, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    got = nlls(f"{base} + {tmp_path / 'lora'}")
    assert (got.double() + wanted).abs().max() < 1e-4
    assert (got - nlls(str(base))).abs().max() > 1e-2
    assert torch.equal(nlls(f"{base} + {tmp_path / 'lora'}", streamed=True), got)


EXPERTS = {
    "qwen": {"mlp.experts.3.down_proj": 4, "mlp.experts.0.up_proj": 2, "mlp.gate": 3},
    "mixtral": {"block_sparse_moe.experts.3.w2": 4, "block_sparse_moe.experts.0.w3": 2, "block_sparse_moe.gate": 3},
}
"""Modules of a layer, as peft finds them where each expert is a module of its own, and their ranks."""


def adapted_by_hand(base, folder, modules, settings, scales):
    """An adapter's files over one layer, and the model that it makes: W + scale · B A, in fp64."""
    tensors, factors = load_file(base / "model.safetensors"), {}
    for module, rank in modules.items():
        name = f"model.layers.1.{module}"
        rows, columns = tensors[f"{name}.weight"].shape
        a, b = torch.randn(rank, columns) * 0.2, torch.randn(rows, rank) * 0.2
        factors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        merged = tensors[f"{name}.weight"].double() + scales[module] * (b.double() @ a.double())
        tensors[f"{name}.weight"] = merged.float()
    (folder / "lora").mkdir(parents=True)
    save_file(factors, folder / "lora" / "adapter_model.safetensors")
    (folder / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    shutil.copytree(base, folder / "merged")
    save_file(tensors, folder / "merged" / "model.safetensors", {"format": "pt"})
    return f"{base} + {folder / 'lora'}", folder / "merged"


@pytest.mark.parametrize("model", EXPERTS)
def test_an_adapter_of_one_expert_is_merged_into_that_one(folder, tmp_path, model):
    modules, base = EXPERTS[model], folder / model
    down, up, router = modules
    settings = {"r": 4, "lora_alpha": 6, "alpha_pattern": {down.rpartition(".")[2]: 10}}
    scales = {down: 10 / 4, up: 6 / 2, router: 6 / 3}
    adapted, merged = adapted_by_hand(base, tmp_path, modules, settings, scales)
    before, files, wanted = (open_model(locate(str(name)))[1] for name in (base, adapted, merged))
    changed = {name for name in files.shapes if not torch.equal(files.read(name), before.read(name))}
    layer = "model.layers.1.mlp."
    assert changed == {
        layer + part for part in ("experts.3.down_proj.weight", "experts.0.up_proj.weight", "gate.weight")
    }
    for name in changed:
        assert (files.read(name) - wanted.read(name)).abs().max() < 1e-5
    assert (nlls(adapted) - nlls(str(merged))).abs().max() < 1e-4
    assert (nlls(adapted) - nlls(str(base))).abs().max() > 1e-2
    assert torch.equal(nlls(adapted, streamed=True), nlls(adapted))


@pytest.mark.parametrize("weights", ["resident", "streamed"])
def test_a_base_and_its_adapters_in_one_run_have_the_bits_of_each_alone(folder, tmp_path, weights):
    modules, base = EXPERTS["qwen"], folder / "qwen"
    settings = {"r": 4, "lora_alpha": 6}
    adapted, _ = adapted_by_hand(base, tmp_path / "one", modules, settings, dict.fromkeys(modules, 1.0))
    make_adapter(base, tmp_path / "two", r=4, target_modules=["q_proj", "o_proj"])
    names = [adapted, str(base), f"{base} + {tmp_path / 'two'}"]
    together = rows_of(score(names, folder / "data.jsonl", weights=weights))
    for name in names:
        alone = rows_of(score(name, folder / "data.jsonl", weights=weights))
        assert [row for row in together if row["model"] == alone[0]["model"]] == alone
