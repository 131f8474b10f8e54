"""The gated delta rule in CUDA C++, compiled for the CPU from its own source."""

from __future__ import annotations

import pytest
from cuda_builds import emulated_module

from psyfast.ops.gpu.cuda_kernels import CudaKernels
from psyfast.ops.records import Lane
from tests.ops import delta_checks
from tests.ops.delta_cases import SHAPES

Shape = tuple[int, int, int, int, int]


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(emulated_module())


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 256, 256, 4)], ids=str)
def test_against_the_truth(kernels: CudaKernels, shape: Shape, lane: Lane) -> None:
    delta_checks.check_against_the_truth(kernels, shape, lane)


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[2], (1, 1, 200, 200, 4)], ids=str)
def test_a_rows_bits_depend_on_its_path_alone(kernels: CudaKernels, shape: Shape) -> None:
    delta_checks.check_that_bits_depend_on_the_path_alone(kernels, shape)


def test_wanted_rows_are_the_same_rows(kernels: CudaKernels) -> None:
    delta_checks.check_wanted_rows(kernels)


def test_forks_of_forks(kernels: CudaKernels) -> None:
    delta_checks.check_forks_of_forks(kernels, 300)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_a_bad_token_spoils_nothing_before_it(kernels: CudaKernels, shape: Shape, value: float) -> None:
    delta_checks.check_that_a_bad_token_spoils_nothing_before_it(kernels, shape, value)


def test_fast_decay_keeps_its_neighbours(kernels: CudaKernels) -> None:
    delta_checks.check_that_fast_decay_keeps_its_neighbours(kernels)


def test_equal_keys_are_solved_as_exactly_as_others(kernels: CudaKernels) -> None:
    delta_checks.check_that_equal_keys_are_solved_as_exactly(kernels)


def test_sizes_without_a_kernel_are_refused(kernels: CudaKernels) -> None:
    delta_checks.check_that_sizes_without_a_kernel_are_refused(kernels)
