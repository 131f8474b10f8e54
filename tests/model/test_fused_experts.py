"""Experts that stand in one tensor a layer: as transformers stores gpt-oss, and in MXFP4 as it was published."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psyfast.config import ScoreConfig
from psyfast.errors import ModelError
from psyfast.footprint import model_sizes
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.fused_experts import MAX_KEPT, FusedExperts
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.model.load.tensors import SafetensorsFiles
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.process_memory import planned_memory
from tests.family_models import make_case, transformers_nlls
from tests.model.test_families import IDS, OTHER, scored

CASE = "gpt-oss, sinks, windows, yarn"
WIDE = {"hidden_size": 64, "intermediate_size": 96}
"""Whole groups of 32."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("gpt_oss") / "plain", CASE, **WIDE)


def quantised(plain, folder, *, changes=lambda tensors: None, exponents=(118, 124)):
    """The model with random MXFP4 experts, and the same de-quantised by transformers: two folders."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors = load_file(plain / "model.safetensors")
    as_values = dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_in, num_out = tensors.pop(name).shape
        codes = np.random.default_rng(len(tensors)).integers(0, 256, (num_experts, num_out, num_in // 32, 16), np.uint8)
        scales = np.random.default_rng(7).integers(*exponents, codes.shape[:3], np.uint8)
        tensors[name + "_blocks"], tensors[name + "_scales"] = torch.from_numpy(codes), torch.from_numpy(scales)
        values = convert_moe_packed_tensors(torch.from_numpy(codes), torch.from_numpy(scales), dtype=torch.float32)
        as_values[name] = values.contiguous()
    changes(tensors)
    config = json.loads((plain / "config.json").read_text())
    for kind, (stored, settings) in {
        "mxfp4": (tensors, {"quantization_config": {"quant_method": "mxfp4"}}),
        "values": (as_values, {}),
    }.items():
        (folder / kind).mkdir(parents=True)
        for file in plain.glob("*.json"):
            (folder / kind / file.name).write_bytes(file.read_bytes())
        (folder / kind / "config.json").write_text(json.dumps(config | settings))
        save_file(stored, folder / kind / "model.safetensors", {"format": "pt"})
    return folder / "mxfp4", folder / "values"


def test_mxfp4_is_transformers_values(plain, tmp_path):
    """To the last bit, over every exponent that bf16 can hold."""
    folder, values = quantised(plain, tmp_path, exponents=(5, 250))
    _, files = open_model(locate(str(folder)))
    _, wanted = open_model(locate(str(values)))
    experts = [name for name in files.shapes if ".experts." in name and name.endswith(".weight")]
    assert len(experts) == 4 * 7 * 3
    assert files.shapes == wanted.shapes
    for name in experts:
        assert files.dtype(name) is torch.bfloat16
        got = files.read(name)
        assert torch.equal(got.float(), wanted.read(name))
        part = torch.empty(5, got.shape[1], dtype=torch.bfloat16)
        files.read_into(name, part, 11)
        assert torch.equal(part, got[11:16])
    assert files.stored_as()[0] == "mxfp4"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_model_in_mxfp4(plain, tmp_path, backend):
    folder, values = quantised(plain, tmp_path)
    wanted = [transformers_nlls(values, "GptOssForCausalLM", ids.tolist()).numpy() for ids in (IDS, OTHER)]
    for streamed in (False, True):
        for ours, theirs in zip(scored(folder, backend, streamed=streamed), wanted, strict=True):
            assert np.abs(ours - theirs).max() < 1e-4


def test_fused_tensors_are_read_by_rows(plain):
    stored = SafetensorsFiles(plain)
    fused = stored.read("model.layers.1.mlp.experts.gate_up_proj")
    down = stored.read("model.layers.1.mlp.experts.down_proj")
    files = FusedExperts(stored)
    for expert in (6, 0, 3):
        layer = f"model.layers.1.mlp.experts.{expert}."
        assert torch.equal(files.read(layer + "gate_proj.weight"), fused[expert, :, 0::2].T)
        assert torch.equal(files.read(layer + "up_proj.weight"), fused[expert, :, 1::2].T)
        assert torch.equal(files.read(layer + "down_proj.weight"), down[expert].T)
        part = torch.empty(7, 64)
        files.read_into(layer + "up_proj.weight", part, 30)
        assert torch.equal(part, fused[expert, :, 61:75:2].T)
    assert not any(name.endswith("gate_up_proj") for name in files.shapes)


def test_an_experts_part_is_read_once_for_all_threads_and_let_go(plain, monkeypatch):
    """Each row is asked for once while a layer is prepared: with the last, nothing is kept."""
    read, original = Counter(), SafetensorsFiles.read_into

    def counting(self, name, out, first_row=0):
        if out.dim() == 3:
            read[name, first_row] += len(out)
        original(self, name, out, first_row)

    monkeypatch.setattr(SafetensorsFiles, "read_into", counting)
    traits, files = open_model(locate(str(plain)))
    operators = resolve("cpu", "cpu", Lane.BF16)
    assembler = Assembler(files, traits, Lane.BF16, torch.device("cpu"), "here")
    for num_threads in (1, 3):
        operators.prepare_layer(assembler.layer(1), num_threads=num_threads)
        assert not files._kept
        layer = "model.layers.1.mlp.experts."
        wanted = {(f"{layer}{part}", expert) for part in ("gate_up_proj", "down_proj") for expert in range(7)}
        assert read == dict.fromkeys(wanted, 1)
        read.clear()


def test_what_is_read_in_part_does_not_pile_up(plain):
    _, files = open_model(locate(str(plain)))
    for layer_idx in range(4):
        for expert in range(7):
            name = f"model.layers.{layer_idx}.mlp.experts.{expert}.up_proj.weight"
            files.read_into(name, torch.empty(2, 64))
    assert len(files._kept) == MAX_KEPT


def test_memory_is_planned_for_an_experts_part(plain):
    traits, files = open_model(locate(str(plain)))
    operators, config = (
        resolve("cpu", "cpu", Lane.BF16),
        ScoreConfig(models=("m",), sources=("d",), memory_limit="8GB", weights="streamed"),
    )
    with_it = planned_memory(config, operators, traits, files).bytes_of["reading"]
    sizes = model_sizes(traits, operators, 4)
    assert with_it == sizes.reading_bytes + 4 * 64 * 2 * 96


def nan_in(tensors):
    tensors["model.layers.2.mlp.experts.down_proj_scales"][3] = 255  # stands for NaN


def narrow(tensors):
    name = "model.layers.0.mlp.experts.gate_up_proj_scales"
    tensors[name] = tensors[name][:, :, :1].contiguous()


def without_scales(tensors):
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]


def odd_rows(tensors):
    for part in ("blocks", "scales"):
        name = f"model.layers.0.mlp.experts.gate_up_proj_{part}"
        tensors[name] = tensors[name][:, :-1].contiguous()


def flat(tensors):
    name = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    tensors[name] = tensors[name].flatten(2)


def stray(tensors):
    for name, shape in {"blocks": (2, 2, 2, 16), "scales": (2, 2, 2)}.items():
        tensors[f"model.layers.0.self_attn.q_proj_{name}"] = torch.zeros(shape, dtype=torch.uint8)


def twice(tensors):
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(7, 96, 64)


def too_few(tensors):
    for part in ("blocks", "scales"):
        name = f"model.layers.0.mlp.experts.gate_up_proj_{part}"
        tensors[name] = tensors[name][:3].contiguous()


DAMAGES = {
    stray: r"'model\.layers\.0\.self_attn\.q_proj_blocks' is none of GptOssForCausalLM's",
    twice: r"'model\.layers\.1\.mlp\.experts\.down_proj' stands beside 'model\.layers\.1\.mlp\.experts\.down_proj_blocks'",
    too_few: r"gate_up_proj_blocks' has shape \[3, 192, 2, 16\], expected \[7, 192, 2, 16\] from the configuration",
    nan_in: r"'model\.layers\.2\.mlp\.experts\.3\.down_proj\.weight' holds NaN or infinity",
    narrow: r"gate_up_proj_scales' is U8 \[7, 192, 1\], expected U8 \[7, 192, 2\]",
    without_scales: "'model.layers.0.mlp.experts.down_proj_scales' is missing",
    odd_rows: r"gate_up_proj_blocks' has 191 rows, expected a gate's and an up projection's in turn",
    flat: r"gate_up_proj_blocks' has shape \[7, 192, 32\], expected \[experts, rows, groups, 16\]",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(plain, tmp_path, damage):
    folder, _ = quantised(plain, tmp_path, changes=damage)
    with pytest.raises(ModelError, match=DAMAGES[damage]):
        load_model(locate(str(folder)), resolve("cpu", "cpu", Lane.BF16))


def test_mxfp4_that_is_not_said_is_refused(plain, tmp_path):
    folder, _ = quantised(plain, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"gate_up_proj_blocks' is in MXFP4, and 'quantization_config' does not say so"
    ):
        open_model(locate(str(folder)))


LAYER = "model.layers.1.mlp."
RESHAPED = {
    "experts.gate_up_proj": [
        (lambda v: v[:3], r"\[3, 64, 192\], expected \[7, 64, 192\]"),
        (lambda v: v[..., :-1], r"\[7, 64, 191\], expected \[7, 64, 192\]"),
        (lambda v: v.flatten(), r"\[86016\], expected \[7, 64, 192\]"),
    ],
    "experts.down_proj": [(lambda v: v.mT, r"\[7, 64, 96\], expected \[7, 96, 64\]")],
    "experts.gate_up_proj_bias": [
        (lambda v: torch.cat([v, v[:, :1]], 1), r"\[7, 193\], expected \[7, 192\]"),
        (lambda v: v.sum(), r"\[\], expected \[7, 192\]"),
    ],
}


@pytest.mark.parametrize("part, change, match", [(part, *one) for part, some in RESHAPED.items() for one in some])
def test_a_tensor_of_all_experts_is_misshapen_or_missing_by_its_own_name(plain, tmp_path, part, change, match):
    tensors = load_file(plain / "model.safetensors")
    value = tensors.pop(LAYER + part)
    folder = shutil.copytree(plain, tmp_path / "model")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"'{LAYER}{part}' \[[\d, ]+\] is missing"):
        load_model(locate(str(folder)), resolve("cpu", "cpu", Lane.BF16))
    save_file(tensors | {LAYER + part: change(value).contiguous()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"'{LAYER}{part}' has shape {match}"):
        load_model(locate(str(folder)), resolve("cpu", "cpu", Lane.BF16))


def test_a_router_is_missing_by_its_own_name(plain, tmp_path):
    tensors = load_file(plain / "model.safetensors")
    del tensors[LAYER + "router.bias"]
    folder = shutil.copytree(plain, tmp_path / "model")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"'{LAYER}router\.bias' \[7\] is missing"):
        load_model(locate(str(folder)), resolve("cpu", "cpu", Lane.BF16))


def test_another_constant_of_the_activation_is_refused(tmp_path):
    folder = make_case(tmp_path / "model", CASE)
    config = json.loads((folder / "config.json").read_text()) | {"swiglu_limit": 5.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"swiglu_limit = 5\.0 is not supported for GptOssForCausalLM"):
        open_model(locate(str(folder)))
