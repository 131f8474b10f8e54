"""The whole engine over the CUDA kernels, emulated: tiny models, and a real transcript."""

import pytest
from cuda_builds import emulated_module

from psyfast.ops.gpu.cuda_kernels import CudaKernels
from psyfast.ops.records import Lane
from tests.device_engines import (
    CASES,
    EXPERTS,
    HEADS,
    assert_as_reference,
    check_engine,
    check_real_transcript,
    engine_over,
)
from tests.family_models import make_case
from tests.test_bits import corpus, scores_of
from tests.tiny import make_llama


@pytest.fixture(scope="module")
def kernels():
    return CudaKernels(emulated_module())


def test_a_tiny_llama(tmp_path, kernels):
    check_engine(make_llama(tmp_path, **HEADS), kernels)


def test_a_tiny_qwen3_5(tmp_path, kernels):
    check_engine(make_case(tmp_path / "model", "qwen3.5, tied, delta rule last, wide filter"), kernels)


def test_a_tiny_qwen3_moe(tmp_path, kernels):
    check_engine(make_case(tmp_path / "model", EXPERTS, num_hidden_layers=2, head_dim=64), kernels)


@pytest.mark.parametrize("lane", list(Lane))
def test_branches_windows_and_soft_caps(tmp_path, kernels, lane):
    folder = make_case(tmp_path, CASES[0])
    assert_as_reference(scores_of(engine_over(folder, kernels, lane), corpus()), folder, corpus(), lane)


def test_the_same_bits_in_any_company(tmp_path, kernels):
    """Projections are torch's, whose bits may hang on the number of rows: so within what those move, and no more."""
    engine = engine_over(make_llama(tmp_path, **HEADS), kernels, Lane.FP32)
    together = scores_of(engine, corpus())
    for request, got in zip(corpus(), together, strict=True):
        (alone,) = scores_of(engine, [request])
        assert abs(alone - got).max() < 1e-5


def test_a_real_transcript(shared_dir, tmp_path, kernels):
    folder = make_llama(tmp_path, max_position_embeddings=2048, **HEADS)
    check_real_transcript(shared_dir, folder, kernels, 600)
