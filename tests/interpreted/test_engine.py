"""The whole engine over the Triton kernels, interpreted: a tiny model, a real transcript, and the backend by its name."""

import pytest

from psyfast.errors import BackendError
from psyfast.ops.gpu.triton_kernels import TritonKernels
from psyfast.ops.records import Lane
from psyfast.ops.registry import describe, resolve
from tests.device_engines import (
    EXPERTS,
    HEADS,
    assert_as_reference,
    check_engine,
    check_real_transcript,
    engine_of,
    engine_over,
    reference_scores,
    small_corpus,
)
from tests.family_models import make_case
from tests.test_bits import scores_of
from tests.tiny import make_llama

TINY = {**HEADS, "num_hidden_layers": 2}


def test_a_tiny_llama(tmp_path):
    check_engine(make_llama(tmp_path, **TINY), TritonKernels())


def test_a_tiny_qwen3_5(tmp_path):
    folder = make_case(tmp_path / "model", "qwen3.5, tied, delta rule last, wide filter")
    got = scores_of(engine_over(folder, TritonKernels(), Lane.FP32), small_corpus())
    assert_as_reference(got, folder, small_corpus(), Lane.FP32)


def test_a_tiny_qwen3_moe(tmp_path):
    folder = make_case(tmp_path / "model", EXPERTS, num_hidden_layers=2, head_dim=64)
    got = scores_of(engine_over(folder, TritonKernels(), Lane.FP32), small_corpus())
    assert_as_reference(got, folder, small_corpus(), Lane.FP32)


def test_a_real_transcript(shared_dir, tmp_path):
    folder = make_llama(tmp_path, max_position_embeddings=2048, **{**TINY, "num_hidden_layers": 1})
    check_real_transcript(shared_dir, folder, TritonKernels(), 600)


def test_by_name(tmp_path):
    """In the interpreter the backend runs on the CPU; elsewhere it asks for a CUDA device."""
    folder = make_llama(tmp_path, **{**TINY, "num_hidden_layers": 1})
    operators = resolve("triton", "cpu", Lane.FP32)
    ours = describe(operators)["operators"]
    assert set(ours.values()) == {"triton"}
    assert describe(operators)["compiled_by"]["triton"].startswith("Triton 3.")
    got = scores_of(engine_of(folder, operators), small_corpus()[2:])
    assert abs(got[0] - reference_scores(folder, small_corpus()[2:])).max() < 1e-4


def test_what_is_refused(tmp_path):
    with pytest.raises(BackendError, match="has none; leave it out"):
        resolve("triton", "cpu", Lane.FP32, isa="avx2")
    with pytest.raises(BackendError, match="no attention for heads of 16, expected one of 64"):
        engine_of(make_llama(tmp_path, head_dim=16), resolve("triton", "cpu", Lane.FP32))
