"""gpu-check's ceilings, throughput and engine on the CPU, by the wall clock: errors before times, rows as the report has them."""

from dataclasses import replace

import pytest
import torch

from bench.gpu_check import ceilings, throughput
from bench.gpu_check.attention_problems import Attention, caterpillar, segments
from bench.gpu_check.comparing import largest_error
from bench.gpu_check.contenders import others
from bench.gpu_check.random_model import transcripts
from bench.gpu_check.roofline import Limits
from bench.gpu_check.shapes import LLAMA_3_2_1B, QWEN3_8B
from bench.gpu_check.timing import WallClock, copies_beyond, summary, timed
from bench.gpu_check.whole_engine import EngineCheck
from psyfast.ops.registry import resolve
from psyfast.plan.batch import plan_batch
from tests.ops.plain_kernels import PlainKernels

CPU = torch.device("cpu")
LIMITS = Limits(1e10, 1e11, 1e9)


def never():
    return False


def tiny(traits):
    """A model's kind in a size for a CPU."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 500}
    alike = {"num_layers": 3, "kinds": (), "kind_of_layer": (), "stored_layers": ()}
    return replace(traits, **sizes, **alike)


def test_contenders_take_turns_and_inputs_rotate():
    order = []
    calls = {name: [lambda n=name, i=i: order.append((n, i)) for i in range(2)] for name in ("a", "b")}
    found = timed(calls, WallClock(), 3, never)
    assert [name for name, _ in order] == ["a", "b"] * 5  # two rounds warm up
    assert [i for name, i in order if name == "a"] == [0, 1, 0, 1, 0]
    assert found["a"].rounds == 3


def test_when_the_time_is_up_the_rounds_so_far_count():
    assert timed({"a": [lambda: None]}, WallClock(), 50, lambda: True)["a"].rounds == 1


def test_a_summary_is_a_median_with_its_spread():
    found = summary([3.0, 1.0, 2.0])
    assert (found.median_s, found.spread, found.rounds) == (2.0, 1.0, 3)


@pytest.mark.parametrize(("l2", "size", "copies"), [(50, 200, 1), (50, 100, 1), (50, 30, 4), (50, 1, 8), (50, 0, 8)])
def test_inputs_pass_the_cache_twice_before_they_come_again(l2, size, copies):
    assert copies_beyond(l2, size) == copies


def test_ceilings():
    found = ceilings.measure(CPU, WallClock(), never, copy_bytes=1 << 16, sides=(16, 32), rounds=3)
    assert found["flop_per_s"] == max(found["products"].values()) > 0
    assert found["bytes_per_s"] == pytest.approx(2 * 2**16 / found["copy"]["median_s"])
    limits = ceilings.limits_of(found, "NVIDIA H100 80GB HBM3")
    assert limits.exp_per_s == pytest.approx(132 * 16 * 1.83e9)
    assert ceilings.limits_of(found, "NVIDIA L4").exp_per_s is None


@pytest.mark.parametrize("traits", [LLAMA_3_2_1B, QWEN3_8B], ids=lambda traits: traits.family)
def test_every_kernel_is_compared_and_then_timed(traits):
    backends = {"one": PlainKernels(), "two": PlainKernels(query_rows=64)}
    rows = [
        row
        for problem in throughput.timed_problems("tiny", tiny(traits), torch.bfloat16, CPU, tokens=200, rows=(5, 33))
        for row in throughput.measure(
            problem, backends, WallClock(), LIMITS, never, usable=("torch",), l2_bytes=1 << 12, seed=1, rounds=2
        )
    ]
    assert all(row["passed"] for row in rows), rows
    ours = [row for row in rows if row["ours"]]
    assert {row["operator"] for row in ours} == {
        "linear_nll", "attention", "norm_rows", "heads", "add_rows", "gated", "copy_slots"
    }  # fmt: skip
    assert len(ours) == 2 * 10
    for row in rows:
        assert row["share_of_roofline"] == pytest.approx(row["bound_s"] / row["median_s"])
    assert all(row["tiled_flop"] > row["flop"] for row in ours if row["operator"] == "attention")
    assert {row["case"] for row in rows if row["contender"] == "torch" and row["operator"] == "attention"} == {
        "tiny, one segment of 200",
        "tiny, 16 segments of 12",
    }


def test_a_wrong_kernel_is_timed_and_said_to_be_wrong():
    class Wrong(PlainKernels):
        def gated(self, gate_up, activation, dtype):
            return super().gated(gate_up, activation, dtype) * 1.1

    class Raises(PlainKernels):
        def gated(self, gate_up, activation, dtype):
            raise RuntimeError("no kernel image is available")

    (problem,) = (
        p
        for p in throughput.timed_problems("tiny", tiny(QWEN3_8B), torch.bfloat16, CPU, tokens=64, rows=())
        if p.operator == "gated"
    )
    backends = {"wrong": Wrong(), "raises": Raises()}
    rows = throughput.measure(problem, backends, WallClock(), LIMITS, never, usable=(), l2_bytes=1, seed=1, rounds=1)
    by_name = {row["contender"]: row for row in rows}
    assert not by_name["wrong"]["passed"]
    assert "median_s" in by_name["wrong"]
    assert by_name["raises"]["error"] == "RuntimeError: no kernel image is available"
    assert by_name["torch"]["passed"]


@pytest.mark.parametrize("requests", [segments(130), segments(64, 64, 64), [caterpillar(90, 20, 2)]], ids=len)
def test_others_compute_the_same_attention(requests):
    problem = Attention.random(requests, 4, 2, 64, torch.float32, CPU)
    found = others(problem)
    assert len(found) == (0 if len(problem.tables.qo_indptr) == 6 else 1)
    for contender in found:
        got = contender.as_output(contender.call())
        assert largest_error(got, problem.truth()["o"]) < 1e-5


def engine_rows(backends, late=never):
    def operators(backend, lane):
        return resolve(backend, "cpu", lane)

    check = EngineCheck("tiny", tiny(QWEN3_8B), CPU, operators, num_tokens=900, seed=torch.seed() % 2**31)
    return list(check.run(backends, 1e10, late, rounds=2))


def test_the_engine_is_compared_and_then_timed():
    row, streamed = engine_rows(("reference",))
    assert (row["weights"], streamed["weights"]) == ("resident", "streamed")
    assert row["passed"]
    assert streamed["passed"]
    assert streamed["same_bits_as_resident"]
    assert 0 < row["nll_error_mean"] == row["reference_bf16_error_mean"]
    assert row["tok_per_s"] == pytest.approx(row["num_tokens"] / row["median_s"])
    assert row["share_of_matrix_rate"] == pytest.approx(row["flop_per_s"] / 1e10)


def test_an_unknown_backend_fails_and_the_next_one_runs():
    first, second, _ = engine_rows(("fpga", "reference"))
    assert first["error"].startswith("BackendError: backend 'fpga'")
    assert second["passed"]


def test_a_late_engine_is_left_out():
    assert [row["left_out"] for row in engine_rows(("reference",), lambda: True)] == [True]


def test_transcripts_are_caterpillars_of_about_so_many_tokens():
    batch = plan_batch(transcripts(20_000, 500, 1)).batch
    assert 0.8 * 20_000 < len(batch.token_ids_T) < 1.2 * 20_000
    assert len(batch.pages.qo_indptr) - 1 > 400
    assert len(batch.rows_N) > 1500
