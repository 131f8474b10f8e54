"""`psyfast models`: what it says of families and of models that load, or do not."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from psyfast.catalogue import describe_model, families
from psyfast.cli import app
from psyfast.model.families import FAMILIES
from tests.family_models import make_case


def run(*words, columns=80):
    return CliRunner().invoke(app, ["models", *map(str, words)], env={"COLUMNS": str(columns)})


def test_every_family_is_listed():
    listed = families()
    assert [family["architecture"] for family in listed] == [family.architecture for family in FAMILIES]
    by_name = {family["architecture"]: family["differs"] for family in listed}
    assert by_name["LlamaForCausalLM"] == []
    assert "windows, but one layer in 4 full" in by_name["Olmo3ForCausalLM"]
    assert json.loads(run("--json").stdout) == listed
    printed = run().stdout
    assert all(family.architecture in printed for family in FAMILIES)
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("columns", [34, 40, 60, 200])
def test_a_terminal_of_any_width_shows_the_same(columns):
    """Folded: every sign that 80 columns show, and none that does not fit."""

    def signs(printed):
        return Counter(printed) - Counter({sign: len(printed) for sign in " \n─"})

    printed = run(columns=columns).stdout
    assert max(map(len, printed.splitlines())) <= columns
    assert signs(printed) == signs(run().stdout)


def test_a_model_is_described(tmp_path):
    folder = make_case(tmp_path / "olmo", "olmo3, heads of 80, yarn on full layers")
    found = describe_model(str(folder))
    assert found["why_not"] is None and found["traits"]["num_layers"] == 4
    # embedding and head, final norm; a layer: q, k, v, o; gate, up, down; q and k norm; two norms
    assert found["met_by_a_token"] == found["parameters"]
    assert found["parameters"] == 2 * 400 * 240 + 240 + 4 * (4 * 240 * 240 + 3 * 240 * 100 + 2 * 240 + 2 * 240)
    assert found["layers"] == ["3 see the last 45; rope base 10,000", "1 see all before; rope base 10,000, yarn × 8"]
    assert found["stored_as"] == ["F32"]
    printed = run(folder)
    assert printed.exit_code == 0 and "Olmo3ForCausalLM" in printed.stdout
    assert json.loads(run(folder, "--json").stdout) == json.loads(json.dumps(found))


def test_a_model_with_experts_is_described(tmp_path):
    """With MLPs between, and with what a token meets of it; and no word of a width that no layer has."""
    found = describe_model(str(make_case(tmp_path / "moe", "qwen3 moe, tied, MLPs between, yarn, biases")))
    rope = "rope base 10,000, yarn × 8"
    assert found["layers"] == [
        f"4 see all before; {rope}; one MLP",
        f"2 see all before; {rope}; 8 of 70 experts a token",
    ]
    # embedding, final norm; a layer: q, k, v, o, their biases, q and k norm, two norms; the MLP, or router and experts
    mixer = 72 * (2 * 72 + 2 * 24) + 2 * 72 + 2 * 24 + 2 * 12 + 2 * 72
    without_experts = 400 * 72 + 72 + 6 * mixer + 4 * 3 * 72 * 100 + 2 * 70 * 72
    assert found["parameters"] == without_experts + 2 * 70 * 3 * 72 * 33
    assert found["met_by_a_token"] == without_experts + 2 * 8 * 3 * 72 * 33
    printed = run(tmp_path / "moe").stdout
    assert "feed-forward 100, of an expert 33" in printed and f"a token meets {found['met_by_a_token']:,}" in printed
    assert max(map(len, printed.splitlines())) <= 80

    olmoe = make_case(tmp_path / "olmoe", "olmoe, norms over all heads")
    assert "hidden 72, of an expert 100, vocabulary 400" in run(olmoe).stdout
    whole = describe_model(str(make_case(tmp_path / "all", "olmoe, tied, grouped heads, every expert, biases")))
    assert whole["met_by_a_token"] == whole["parameters"]


@pytest.mark.parametrize("damage", ["tensor", "architecture"])
def test_what_does_not_load_says_why(tmp_path, damage):
    from safetensors.torch import load_file, save_file

    folder = make_case(tmp_path / "qwen", "qwen3, tied, heads of 80")
    if damage == "tensor":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.2.self_attn.q_norm.weight"]
        save_file(tensors, folder / "model.safetensors")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2MoeForCausalLM"]}))
    found = describe_model(str(folder))
    assert {"tensor": "q_norm", "architecture": "Qwen2MoeForCausalLM"}[damage] in found["why_not"]
    assert (found["traits"] is None) == (damage == "architecture")
    printed = run(folder)
    assert printed.exit_code == 2 and "no:" in printed.stdout


def test_a_revision_without_a_model_is_refused():
    result = run("--revision", "main")
    assert result.exit_code != 0 and "name one" in str(result.exception)
