"""Tensors of experts that do not fit: each is refused by the name that its file has for it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from psyfast.errors import ModelError
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from tests.family_models import make_case

CASES = {
    "qwen3 moe, heads of 80, shares of all": ("mlp.gate", "mlp.experts.4.up_proj"),
    "mixtral, windows, heads of 80": ("block_sparse_moe.gate", "block_sparse_moe.experts.4.w3"),
    "olmoe, norms over all heads": ("mlp.gate", "mlp.experts.11.up_proj"),
}
"""Cases, and what their files call a router and one expert's projection."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(case):
        if case not in made:
            made[case] = make_case(tmp_path_factory.mktemp("experts") / "model", case)
        return made[case]

    return folder


def edited(original, folder, edit):
    """A copy of a model with its tensors changed."""
    folder.mkdir()
    for path in original.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(original / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def refused(folder, message):
    with pytest.raises(ModelError, match=message):
        load_model(locate(str(folder)), resolve("cpu", "cpu", Lane.FP32))


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_missing_one_is_named_as_its_file_would(folders, tmp_path, case, part):
    name = f"model.layers.2.{CASES[case][part]}.weight"
    folder = edited(folders(case), tmp_path / "model", lambda tensors: tensors.pop(name))
    refused(folder, rf"tensor '{name}' \[[0-9, ]+\] is missing")


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_misshapen_one_is_named_as_stored(folders, tmp_path, case, part):
    name = f"model.layers.2.{CASES[case][part]}.weight"

    def edit(tensors):
        tensors[name] = tensors[name][:-1].clone()

    refused(edited(folders(case), tmp_path / "model", edit), rf"'{name}' has shape \[[0-9]+, 72\], expected \[")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_one_with_nan_is_named_as_stored(folders, tmp_path, case, part, value):
    name = f"model.layers.2.{CASES[case][part]}.weight"

    def edit(tensors):
        tensors[name][-1, -1] = value

    refused(edited(folders(case), tmp_path / "model", edit), f"'{name}' holds NaN or infinity")


@pytest.mark.parametrize("case", CASES)
def test_a_stored_type_that_cannot_be_read_is_named(folders, tmp_path, case):
    name = f"model.layers.2.{CASES[case][1]}.weight"

    def edit(tensors):
        tensors[name] = tensors[name].double()

    refused(edited(folders(case), tmp_path / "model", edit), f"'{name}' is stored as F64; supported: F32")


@pytest.mark.parametrize("case", CASES)
def test_one_too_many_is_left_over(folders, tmp_path, case):
    """Experts beyond the configuration's, a bias, an MLP beside them, a shared expert."""
    router, projection = CASES[case]
    block = router.removesuffix("gate")
    for nth, stray in enumerate(
        (
            projection.replace(".4.", ".12.").replace(".11.", ".12.") + ".weight",
            projection + ".bias",
            f"{block}gate.bias",
            f"{block}shared_expert_gate.weight",
            "mlp.shared_experts.up_proj.weight",
            "mlp.down_proj.weight",
        )
    ):
        name = f"model.layers.3.{stray}"
        folder = edited(
            folders(case), tmp_path / str(nth), lambda tensors, name=name: tensors.update({name: torch.ones(2, 72)})
        )
        refused(folder, f"tensor '{name}' is none of ")


@pytest.mark.parametrize("suffix", ["", ".weight"])
@pytest.mark.parametrize("case", CASES)
def test_experts_in_one_tensor_are_refused_with_the_way_out(folders, tmp_path, case, suffix):
    """Which way round their rows and columns stand is the writer's secret."""
    block, projection = CASES[case][0].removesuffix("gate"), CASES[case][1].rpartition(".")[2]
    fused = f"model.layers.1.{block}experts.gate_up_proj{suffix}"

    def edit(tensors):
        theirs = [name for name in tensors if name.endswith(f"{projection}.weight") and ".layers.1." in name]
        tensors[fused] = torch.stack([tensors.pop(name) for name in theirs])

    folder = edited(folders(case), tmp_path / "model", edit)
    refused(folder, rf"tensor '{fused}' \[[0-9]+, [0-9]+, 72\] holds all of a layer's experts.*save_pretrained")


def test_a_layer_whose_experts_hold_nan_is_refused_when_it_is_reached(folders, tmp_path):
    """Streamed, nothing of it is read before."""
    case = next(iter(CASES))
    name = f"model.layers.2.{CASES[case][1]}.weight"
    folder = edited(folders(case), tmp_path / "model", lambda tensors: tensors[name].fill_(torch.nan))
    model = load_model(locate(str(folder)), resolve("cpu", "cpu", Lane.FP32), streamed=True)
    model.weights.layer(0)
    model.weights.layer(1)
    with pytest.raises(ModelError, match=f"'{name}' holds NaN or infinity"):
        model.weights.layer(2)
    model.weights.close()


def test_a_layer_with_an_mlp_between_has_no_experts(tmp_path):
    folder = make_case(tmp_path / "original", "qwen3 moe, tied, MLPs between, yarn, biases")
    name = "model.layers.2.mlp.experts.0.up_proj.weight"  # a layer without experts
    stray = edited(folder, tmp_path / "model", lambda tensors: tensors.update({name: torch.ones(33, 72)}))
    refused(stray, f"tensor '{name}' is none of Qwen3MoeForCausalLM's")
