"""Quantised safetensors: the same values as the library that made them, or as the formula of its paper, and by name what is not."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psyfast.engine import Engine
from psyfast.errors import ModelError
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from tests.family_models import make_case
from tests.model.quantised_folders import (
    PROJECTIONS,
    ROUTER,
    awq_parts,
    gptq_parts,
    int8_parts,
    nf4_parts,
    replace_matrices,
)
from tests.tiny import make_llama

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(autouse=True)
def fresh_seed():
    print("torch seed", torch.seed())  # shown when a test fails


def files_of(folder):
    return open_model(locate(str(folder)))[1]


def nlls(folder, *, streamed=False, lane=Lane.FP32):
    operators = resolve("auto", "cpu", lane)
    model = load_model(locate(str(folder)), operators, streamed=streamed)
    ids = np.random.default_rng(3).integers(2, 400, 150)
    scores = Engine(model.traits, model.weights, operators).run(
        plan_batch([Request(ids, np.arange(1, len(ids)))]).batch
    )
    model.weights.close()
    return scores.nll_N


def quantised_by_transformers(folder, **settings):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = make_llama(folder / "plain", dtype=torch.bfloat16, **SIZES)
    model = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(folder / "quantised")
    return folder / "quantised"


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(tmp_path, kind, nested):
    from bitsandbytes import functional

    folder = quantised_by_transformers(
        tmp_path, load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested
    )
    stored, files = load_file(folder / "model.safetensors"), files_of(folder)
    assert files.stored_as() == (kind, "BF16")
    matrices = [name.removesuffix(".absmax") for name in stored if name.endswith(".weight.absmax")]
    assert len(matrices) == 21
    for name in matrices:
        parts = {part: value for part, value in stored.items() if part.startswith(name + ".")}
        state = functional.QuantState.from_dict(parts, device="cpu")
        wanted = functional.dequantize_4bit(stored[name], state)
        assert files.dtype(name) == torch.bfloat16
        assert torch.equal(files.read(name), wanted)
        some = torch.empty(7, wanted.shape[1])
        files.read_into(name, some, 5)
        assert torch.equal(some, wanted[5:12].float())


def test_blocks_that_run_over_the_ends_of_rows(tmp_path):
    """Rows of 37 values in blocks of 64; bitsandbytes' own fast path is wrong there, its plain one is the truth."""
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    folder = quantised_by_transformers(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    path = folder / "model.safetensors"
    stored = load_file(path)
    codes, state = functional.quantize_4bit(torch.randn(51, 37), quant_type="nf4", compress_statistics=False)
    stored = {name: value for name, value in stored.items() if not name.startswith(DOWN)}
    stored |= {DOWN: codes, **{f"{DOWN}.{suffix}": value for suffix, value in state.as_dict(packed=True).items()}}
    save_file(stored, path)
    wanted = _dequantize_4bit_compute(codes.reshape(-1), state.absmax, state.code, 64, (51, 37), torch.float32)
    for start, stop in ((0, 51), (1, 2), (50, 51), (13, 29)):
        some = torch.empty(stop - start, 37)
        files_of(folder).read_into(DOWN, some, start)
        assert torch.equal(some, wanted[start:stop])


def test_int8_is_that_of_bitsandbytes(tmp_path):
    from bitsandbytes import functional

    folder = quantised_by_transformers(tmp_path, load_in_8bit=True)
    stored, files = load_file(folder / "model.safetensors"), files_of(folder)
    wanted = functional.int8_vectorwise_dequant(stored[DOWN], stored[DOWN.replace("weight", "SCB")])
    assert torch.equal(files.read(DOWN), wanted)


def fp8_matrix(rows, columns, block):
    values = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // block[0]), -(-columns // block[1])) + 0.1
    wanted = torch.empty(rows, columns)
    for r in range(rows):
        for c in range(0, columns, block[1]):
            wanted[r, c : c + block[1]] = values[r, c : c + block[1]].float() * scales[r // block[0], c // block[1]]
    return {"weight": values, "weight_scale_inv": scales}, wanted


FORMATS = {
    "fp8": (
        lambda rows, columns: fp8_matrix(rows, columns, (48, 40)),
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 40], "activation_scheme": "dynamic"},
    ),
    "gptq": (
        lambda rows, columns: gptq_parts(rows, columns, bits=4, group=32, zero_offset=1, shuffled=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    ),
    "gptq in order of activation": (
        lambda rows, columns: gptq_parts(rows, columns, bits=4, group=16, zero_offset=1, shuffled=True),
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True},
    ),
    "gptq 8 bits, second format": (
        lambda rows, columns: gptq_parts(rows, columns, bits=8, group=columns, zero_offset=0, shuffled=False),
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq_v2"},
    ),
    "gptq 2 bits": (
        lambda rows, columns: gptq_parts(rows, columns, bits=2, group=32, zero_offset=1, shuffled=False),
        {"quant_method": "gptq", "bits": 2, "group_size": 32},
    ),
    "awq": (
        lambda rows, columns: awq_parts(rows, columns, group=32),
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_the_formula_and_score_as_they_would_unquantised(tmp_path, name):
    make, settings = FORMATS[name]
    plain = make_llama(tmp_path / "plain", **SIZES)
    folder = make_llama(tmp_path / "quantised", **SIZES)
    wanted = replace_matrices(folder, make, settings)
    files = files_of(folder)
    assert set(files.shapes) == set(wanted)
    for tensor, values in wanted.items():
        assert torch.equal(files.read(tensor), values), tensor
    some = torch.empty(5, SIZES["intermediate_size"], dtype=torch.bfloat16)
    files.read_into(DOWN, some, 9)
    assert torch.equal(some, wanted[DOWN][9:14].bfloat16())
    save_file(wanted, plain / "model.safetensors", {"format": "pt"})
    for lane in Lane:
        assert torch.equal(nlls(folder, lane=lane), nlls(plain, lane=lane))
    assert torch.equal(nlls(folder, streamed=True), nlls(plain))


@pytest.mark.parametrize("name", ["fp8", "gptq in order of activation"])
def test_a_hybrid_scores_as_it_would_unquantised(tmp_path, name):
    """Rows of a head's queries and of its gate stand in turn, so that reads begin and end inside of blocks."""
    case = "qwen3.5 with a vision tower" if name.startswith("gptq") else "qwen3.5, odd heads, partial rotary"
    sizes = {"hidden_size": 128, "intermediate_size": 192} if name.startswith("gptq") else {}
    plain, folder = (make_case(tmp_path / part, case, **sizes) for part in ("plain", "quantised"))
    wanted = replace_matrices(folder, *FORMATS[name])
    save_file(wanted, plain / "model.safetensors", {"format": "pt"})
    for lane in Lane:
        assert torch.equal(nlls(folder, lane=lane), nlls(plain, lane=lane))
    assert torch.equal(nlls(folder, streamed=True), nlls(plain))


WITH_EXPERTS = {
    **FORMATS,
    "nf4": (nf4_parts, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "int8": (int8_parts, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
}
EXPERTS = {"qwen3 moe, normalised, rows of whole blocks": {}, "mixtral, windows, heads of 80": {"hidden_size": 96}}


@pytest.mark.parametrize("case", EXPERTS)
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_experts_score_as_they_would_unquantised_beside_a_plain_router(tmp_path, name, case):
    sizes = {"intermediate_size": 128, **EXPERTS[case]}
    plain, folder = (make_case(tmp_path / part, case, **sizes) for part in ("plain", "quantised"))
    wanted = replace_matrices(folder, *WITH_EXPERTS[name])
    save_file(wanted, plain / "model.safetensors", {"format": "pt"})
    files = files_of(folder)
    assert files.stored_as()[1:] == ("F32",) and files.shapes == files_of(plain).shapes
    router = "model.layers.1.mlp.gate.weight"
    assert files.dtype(router) == torch.float32
    assert torch.equal(files.read(router), files_of(plain).read(router))
    for lane in Lane:
        assert torch.equal(nlls(folder, lane=lane), nlls(plain, lane=lane))
    assert torch.equal(nlls(folder, streamed=True), nlls(plain))


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_router_in_few_bits_is_read_as_well(tmp_path, name):
    """bitsandbytes takes every linear layer but the head, the router among them."""
    case = next(iter(EXPERTS))
    plain, folder = (make_case(tmp_path / part, case) for part in ("plain", "quantised"))
    wanted = replace_matrices(folder, *WITH_EXPERTS[name], names=(*PROJECTIONS, ROUTER))
    save_file(wanted, plain / "model.safetensors", {"format": "pt"})
    assert torch.equal(nlls(folder), nlls(plain))


def test_experts_that_bitsandbytes_leaves_plain_load_beside_attention_in_four_bits(tmp_path):
    """As transformers 5 saves them, which holds all experts of a layer in one parameter."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    case = next(iter(EXPERTS))
    plain = make_case(tmp_path / "plain", case)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, device_map="cpu")
    model.save_pretrained(tmp_path / "quantised")
    files = files_of(tmp_path / "quantised")
    assert files.stored_as() == ("nf4", "F32")
    save_file({name: files.read(name) for name in files.shapes}, plain / "model.safetensors", {"format": "pt"})
    assert torch.equal(nlls(tmp_path / "quantised"), nlls(plain))


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("gptq", "scales", r"experts\.3\.up_proj\.scales' is missing"),
        ("gptq", "qweight", r"experts\.3\.up_proj\.weight' .* is missing"),
        ("fp8", "weight", r"experts\.3\.up_proj\.weight' is missing, whose scales are there"),
        ("nf4", "weight.absmax", r"experts\.3\.up_proj\.weight.*missing"),
        ("int8", "SCB", r"experts\.3\.up_proj\.weight' is stored as I8"),
    ],
)
def test_a_part_of_one_expert_that_is_missing_is_named(tmp_path, name, part, message):
    folder = make_case(tmp_path, next(iter(EXPERTS)))
    replace_matrices(folder, *WITH_EXPERTS[name])
    stored = load_file(folder / "model.safetensors")
    del stored[f"model.layers.1.mlp.experts.3.up_proj.{part}"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        nlls(folder)


def test_four_bits_score_as_transformers_does_with_their_values(tmp_path):
    folder = quantised_by_transformers(tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4")
    files = files_of(folder)
    plain = make_llama(tmp_path / "values", dtype=torch.bfloat16, **SIZES)
    save_file({name: files.read(name) for name in files.shapes}, plain / "model.safetensors", {"format": "pt"})
    assert torch.equal(nlls(folder), nlls(plain))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, _: config.update(quant_method="hqq"), "'hqq' cannot be read; supported: bitsandbytes, fp8"),
        (lambda config, _: config.update(quant_method=None), "'None' cannot be read"),
        (lambda config, _: config.update(bits=3), "bits = 3"),
        (lambda config, _: config.update(group_size=0), "'group_size' is 0"),
        (lambda config, _: config.update(group_size=64), r"qzeros' is I32 .*, expected I32 \[2, "),
        (lambda _, stored: stored.pop("model.layers.1.mlp.up_proj.scales"), r"up_proj\.scales' is missing"),
        (lambda _, stored: stored.pop("model.layers.1.mlp.up_proj.qweight"), r"up_proj\.weight' .* is missing"),
        (
            lambda _, stored: stored.update(
                {"model.layers.1.mlp.up_proj.scales": torch.full((4, 96), torch.nan).half()}
            ),
            "holds NaN",
        ),
        (
            lambda _, stored: stored.update({"model.layers.1.mlp.up_proj.qweight": torch.zeros(5, 96).int()}),
            r"up_proj\.qzeros' is I32 .*, expected I32",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, change, message):
    sizes = {**SIZES, "intermediate_size": 96}
    folder = make_llama(tmp_path, **sizes)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}

    def make(rows, columns):
        parts, values = gptq_parts(rows, columns, bits=4, group=32, zero_offset=1, shuffled=False)
        del parts["g_idx"]
        return parts, values

    replace_matrices(folder, make, settings)
    stored = load_file(folder / "model.safetensors")
    change(settings, stored)
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(ModelError, match=message):
        nlls(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "awq", "version": "gemv"}, "'gemv'"),
        ({"quant_method": "fp8"}, "'weight_block_size' is None"),
        ({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [48, 40]}, "e5m2"),
    ],
)
def test_options_that_are_not_known_are_refused(tmp_path, settings, message):
    folder = make_llama(tmp_path, **SIZES)
    replace_matrices(folder, FORMATS["fp8" if "fp8" in settings.values() else "awq"][0], settings)
    with pytest.raises(ModelError, match=message):
        files_of(folder)


def test_an_fp8_matrix_that_is_missing_is_named(tmp_path):
    folder, (make, settings) = make_llama(tmp_path, **SIZES), FORMATS["fp8"]
    replace_matrices(folder, make, settings)
    path = folder / "model.safetensors"
    stored = load_file(path)
    del stored[DOWN]
    save_file(stored, path)
    with pytest.raises(ModelError, match=rf"tensor '{DOWN}' is missing, whose scales are there"):
        files_of(folder)


def test_a_configuration_that_is_no_object(tmp_path):
    folder = make_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": "4bit"}))
    with pytest.raises(ModelError, match="'quantization_config' is '4bit', expected an object"):
        files_of(folder)


@pytest.mark.parametrize("part", [".quant_map", ".absmax", ".quant_state.bitsandbytes__nf4", ".nested_absmax", ""])
def test_a_part_of_a_four_bit_matrix_that_is_missing_is_named(tmp_path, part):
    folder = quantised_by_transformers(
        tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    path = folder / "model.safetensors"
    stored = load_file(path)
    del stored[DOWN + part]
    save_file(stored, path)
    with pytest.raises(ModelError, match=rf"{DOWN}.*(missing|U8)"):
        nlls(folder)
