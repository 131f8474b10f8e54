"""The GPU operators as an engine, on the CPU, over plain kernels: what stands around a backend's kernels is right."""

import numpy as np
import pytest
import torch

from psyfast.ops.gpu import products, tiles
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import plan_batch
from tests.device_engines import CASES, assert_as_reference, engine_of, engine_over
from tests.family_models import make_case
from tests.ops.plain_kernels import PlainKernels
from tests.test_bits import corpus, scores_of
from tests.tiny import make_llama

LANES = list(Lane)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {case: make_case(root / str(number), case) for number, case in enumerate(CASES)}
    return made | {
        "llama": make_llama(root / "llama"),
        "olmo": make_case(root / "olmo", OLMO),
        "qwen3.5": make_case(root / "qwen3.5", HYBRID),
        "experts": make_case(root / "experts", EXPERTS),
        "shares": make_case(root / "shares", SHARES),
    }


OLMO = "olmo3, tied, grouped heads of 96, biases"
"""Norms after alone (attn_in and mlp have none) and of all heads together."""
HYBRID = "qwen3.5, tied, delta rule last, wide filter"
"""The delta rule in most layers, and a gate of what attention gives."""
EXPERTS, SHARES = "qwen3 moe, tied, MLPs between, yarn, biases", "qwen3 moe, heads of 80, shares of all"
"""Eight of 70 experts whose weights sum to one, in two layers of six; three of nine, whose weights are shares of all."""


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("case", ["llama", "olmo", "qwen3.5", "experts", "shares", *CASES])
def test_scores_are_the_references(folders, case, lane):
    engine = engine_over(folders[case], PlainKernels(), lane)
    assert_as_reference(scores_of(engine, corpus()), folders[case], corpus(), lane)


@pytest.mark.parametrize("off", ["share", "sparse", "packing"])
@pytest.mark.parametrize("case", ["llama", "qwen3.5", "experts", *CASES])
def test_an_optimisation_switched_off_changes_nothing(folders, case, off):
    requests, engine = corpus(), engine_over(folders[case], PlainKernels(), Lane.FP32, sparse=off != "sparse")
    if off == "packing":
        got = [scores_of(engine, [request])[0] for request in requests]
    else:
        got = scores_of(engine, requests, share=off != "share")
    assert_as_reference(got, folders[case], requests, Lane.FP32)


@pytest.mark.parametrize("shape", [(16, 1), (128, 4)], ids=str)
def test_the_shape_of_tiles_changes_nothing(folders, shape):
    engine = engine_over(folders["llama"], PlainKernels(query_rows=shape[0], key_pages=shape[1]), Lane.FP32)
    assert_as_reference(scores_of(engine, corpus()), folders["llama"], corpus(), Lane.FP32)


@pytest.mark.parametrize("case", ["llama", "qwen3.5", "experts", "shares", *CASES])
def test_chunks_of_rows_change_nothing(folders, case, monkeypatch):
    monkeypatch.setattr(products, "TEMPORARY_BYTES", 1)
    monkeypatch.setattr(products, "MIN_ROWS_A_CHUNK", 50)
    engine = engine_over(folders[case], PlainKernels(), Lane.FP32)
    assert_as_reference(scores_of(engine, corpus()), folders[case], corpus(), Lane.FP32)


class Counting(PlainKernels):
    """Plain kernels that remember how many rows they were given."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "rows", {"heads": [], "gated": [], "linear_nll": []})

    def heads(self, qkv_TC, shape, *rest):
        self.rows["heads"].append((len(qkv_TC), shape.num_heads, shape.num_kv_heads))
        return super().heads(qkv_TC, shape, *rest)

    def gated(self, gate_up_TG, *rest):
        self.rows["gated"].append(len(gate_up_TG))
        return super().gated(gate_up_TG, *rest)

    def linear_nll(self, y_ND, *rest, **settings):
        self.rows["linear_nll"].append(len(y_ND))
        return super().linear_nll(y_ND, *rest, **settings)


def test_the_last_layer_asks_for_the_wanted_queries_alone(folders):
    kernels = Counting()
    engine = engine_over(folders["llama"], kernels, Lane.FP32)
    batch = plan_batch(corpus()).batch
    engine.run(batch)
    tokens, wanted = len(batch.token_ids_T), len(np.unique(batch.rows_N))
    assert wanted < tokens / 2
    assert kernels.rows["heads"] == [(tokens, 6, 2), (tokens, 6, 2), (tokens, 0, 2), (wanted, 6, 0)]
    assert kernels.rows["gated"] == [tokens, tokens, wanted]
    assert kernels.rows["linear_nll"] == [len(batch.rows_N)]


def test_a_token_meets_the_experts_that_it_uses_and_no_other(folders):
    """Three of nine in each of four layers; in the last one, of the rows that are wanted."""
    kernels = Counting()
    engine = engine_over(folders["shares"], kernels, Lane.FP32)
    batch = plan_batch(corpus()).batch
    engine.run(batch)
    tokens, wanted = len(batch.token_ids_T), len(np.unique(batch.rows_N))
    assert sum(kernels.rows["gated"]) == 3 * (3 * tokens + wanted)
    assert len(kernels.rows["gated"]) <= 4 * 9


@pytest.mark.parametrize("case", ["llama", CASES[0]])
def test_what_else_is_known_of_a_row_is_the_references(folders, case):
    batch = plan_batch(corpus()).batch
    ours = engine_over(folders[case], PlainKernels(), Lane.FP32).run(batch)
    truth = engine_of(folders[case], resolve("reference", "cpu", Lane.FP32)).run(batch)
    assert torch.equal(ours.argmax_N, truth.argmax_N)
    assert torch.equal(ours.rank_N, truth.rank_N)
    assert (ours.entropy_N - truth.entropy_N).abs().max() < 1e-4
    known = batch.option_ids_NK >= 0
    assert np.array_equal(~ours.option_nll_NK.isnan().numpy(), known)
    assert (ours.option_nll_NK - truth.option_nll_NK).abs()[torch.from_numpy(known)].max() < 1e-4


def test_an_empty_batch_scores_nothing(folders):
    scores = engine_over(folders["llama"], PlainKernels(), Lane.BF16).run(plan_batch([]).batch)
    assert (scores.nll_N.shape, scores.argmax_N.shape) == ((0,), (0,))


def test_tiles_are_planned_once_a_window_and_batch(folders, monkeypatch):
    planned = []
    plan = tiles.plan_tiles
    monkeypatch.setattr(tiles, "plan_tiles", lambda *given: planned.append(given[1:]) or plan(*given))
    engine_over(folders[CASES[0]], PlainKernels(), Lane.FP32).run(plan_batch(corpus()).batch)
    windows = [window for *_, window in planned]
    assert windows == [39, None, None]  # of four layers, two of each kind; the last one's rows have tiles of their own
