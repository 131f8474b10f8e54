"""The roofline's formulas against counts by hand and by the planner, and docs/roofline.md against the formulas."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.gpu_check import roofline
from bench.gpu_check.attention_problems import Attention, caterpillar, segments
from bench.gpu_check.head_problems import Head
from bench.gpu_check.problems import AddRows, CopySlots, Gated, Heads, NormRows
from bench.gpu_check.roofline import DATASHEETS, Limits, Work
from bench.gpu_check.roofline_tables import all_tables, kernel_work
from bench.gpu_check.shapes import LLAMA_3_2_1B, MODELS, QWEN3_8B
from psyfast.engine import model_shape
from psyfast.ops.gpu.kernel_set import HeadsShape
from psyfast.plan.batch import plan_batch
from psyfast.plan.flops import required_flop
from tests.ops.plain_kernels import PlainKernels

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
BF16 = torch.bfloat16


def num_bytes(*tensors):
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def test_bytes_are_those_of_the_tensors_that_go_in_and_come_out():
    head = Head.random(13, 700, 48, BF16, CPU, num_options=5)
    out = head.run(PlainKernels())
    assert head.work.num_bytes == num_bytes(
        head.y_ND, head.lm_head_VD, head.target_N, head.option_ids_NK, *out.values()
    )
    norm = NormRows.random(7, 48, BF16, CPU)
    assert norm.work.num_bytes == num_bytes(norm.x_TD, norm.norm.weight, norm.run(PlainKernels())["y"])
    added = AddRows.random(7, 48, CPU)
    assert added.work.num_bytes == num_bytes(added.x_TD, added.y_TD, added.run(PlainKernels())["x"])
    gated = Gated.random(7, 48, "silu", BF16, CPU)
    assert gated.work.num_bytes == num_bytes(gated.gate_up_TG, gated.run(PlainKernels())["h"])
    copied = CopySlots.random(9, 2, 64, BF16, CPU)
    slots = (copied.runs_R4[:, 3] - copied.runs_R4[:, 2]).sum().item()
    assert copied.work.num_bytes == 4 * num_bytes(copied.k[0, :, :1]) * slots
    heads = Heads.random(64, HeadsShape(6, 2, 64), BF16, CPU)
    rotated = 64 * 2 * 32 * 4  # a row of cos and of sin for each token
    written = 2 * 64 * num_bytes(heads.run(PlainKernels())["k"][0, :, 0])
    q = heads.run(PlainKernels())["q"]
    assert heads.work.num_bytes == num_bytes(heads.qkv_TC, q, heads.positions_T, heads.slots_T) + rotated + written
    attention = Attention.random(segments(128, 64), 6, 2, 64, BF16, CPU)
    o = attention.run(PlainKernels())["o"]
    assert attention.work.num_bytes == num_bytes(attention.q_THE, attention.k, attention.v, attention.positions_T, o)


@pytest.mark.parametrize("window", [None, 33])
def test_attention_counts_the_pairs_that_a_mask_shows(window):
    problem = Attention.random([caterpillar(150, 20, 3)], 6, 2, 64, torch.float32, CPU, window=window)
    pairs = sum(min(position + 1, window or position + 1) for position in problem.tables.positions.tolist())
    assert problem.work.flop == 4 * 64 * 6 * pairs
    assert problem.work.num_exps == 6 * pairs
    tiles = problem.tiles_for(PlainKernels())
    blocks = (tiles.bounds_I4[:, 3] - tiles.bounds_I4[:, 0]).sum().item()
    assert problem.tiled_flop(PlainKernels()) == 4 * 64 * 6 * blocks * 32 * 128 > problem.work.flop


@pytest.mark.parametrize("traits", MODELS.values(), ids=MODELS)
def test_a_layers_work_is_what_the_engine_counts(traits):
    num_tokens = 8192
    batch = plan_batch(segments(num_tokens)).batch
    required = required_flop(batch, model_shape(traits))
    found = kernel_work(traits)
    products = sum(work.flop for name, work in found.items() if "cuBLAS" in name)
    assert products == required.linear / traits.num_layers
    assert found["attention"].flop == required.attention / traits.num_layers
    assert found["linear_nll"].flop == 1024 * required.head / len(np.unique(batch.rows_N))


def test_shapes_are_the_published_ones():
    """Parameters as the model cards have them: 1.24 billion and 8.19 billion."""
    for traits, billions in ((LLAMA_3_2_1B, 1.236), (QWEN3_8B, 8.19)):
        matrices = traits.num_layers * traits.num_layer_params
        embeddings = traits.vocab_size * traits.hidden_size * (1 if traits.tied_head else 2)
        assert (matrices + embeddings) / 1e9 == pytest.approx(billions, rel=2e-3)


def test_the_bound_is_the_slowest_of_three():
    limits = Limits(bytes_per_s=10.0, flop_per_s=100.0, exp_per_s=5.0)
    assert limits.ridge == 10.0
    assert limits.bound(Work(1000.0, 20.0, 5.0)) == ("matrix", 10.0)
    assert limits.bound(Work(10.0, 20.0, 5.0)) == ("memory", 2.0)
    assert limits.bound(Work(10.0, 20.0, 500.0)) == ("exp", 100.0)
    assert Limits(10.0, 100.0).bound(Work(10.0, 20.0, 500.0)) == ("memory", 2.0)
    assert (Work(1, 2, 3) + Work(4, 5, 6)) == Work(5, 7, 9)


def test_printed_rates_are_those_of_the_multiprocessors():
    """A multiprocessor's tensor cores: 2,048 operations a clock on an A100, 4,096 on an H100 or H200, in bf16."""
    for sheet in DATASHEETS:
        a_clock = 2048 if sheet.name == "A100" else 4096
        assert sheet.bf16_flop_per_s == pytest.approx(sheet.num_multiprocessors * sheet.clock_hz * a_clock, rel=2e-3)


def test_the_page_has_the_tables_of_the_formulas():
    page = (ROOT / "docs" / "roofline.md").read_text(encoding="utf-8")
    for title, text in all_tables().items():
        assert text in page, f"print the table '{title}' again: python3 -m bench.gpu_check.roofline_tables"


def test_sentences_of_the_page_have_the_formulas_numbers():
    page = " ".join((ROOT / "docs" / "roofline.md").read_text(encoding="utf-8").split())
    a100, h100, _ = DATASHEETS
    hidden = [roofline.tokens_that_hide_a_layer(s.bf16_flop_per_s, s.link_bytes_per_s, 2) for s in (a100, h100)]
    assert "{:,.0f} tokens on an A100, {:,.0f} on an H100 or H200".format(*hidden) in page
    from_l2 = h100.bf16_flop_per_s / roofline.product_tile_intensity(128, 256, 2)
    assert f"an H100 then has to deliver {from_l2 / 1e12:.1f} TB/s" in page
    shares = [
        times["exp"] / times["matrix"]
        for times in (s.limits.seconds(kernel_work(t)["linear_nll"]) for s in DATASHEETS for t in MODELS.values())
    ]
    low, high = re.search(r"\*\*Exponentials\*\* take (\d+) to (\d+) % of the products' time", page).groups()
    assert round(100 * min(shares)) >= int(low)
    assert round(100 * max(shares)) <= int(high)
    assert roofline.attention_tile_intensity(128, 2) == roofline.product_tile_intensity(256, 256, 2)
    fold = 2 * 128 * 256 / 16
    shares = [product / (product + fold) for product in (2 * 128 * 256 * hidden / 4096 for hidden in (2048, 4096))]
    assert "would leave {:.0%} and {:.0%}".format(*shares).replace("%", " %") in page
    logits = 8 * 1024 * QWEN3_8B.vocab_size / (2 * QWEN3_8B.vocab_size * QWEN3_8B.hidden_size)
    assert logits == 1.0  # "as much again as the head itself"
