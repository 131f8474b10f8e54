"""The gated delta rule in Triton: against the truth in fp64, its bits against themselves, and what must not reach a row."""

import pytest

from psyfast.ops.gpu.triton_kernels import TritonKernels
from psyfast.ops.records import Lane
from tests.ops import delta_checks

# Key heads, value heads, key size, value size, taps: few heads, as the interpreter takes a second for each and some chunks.
SHAPES = [(1, 1, 128, 128, 4), (1, 3, 24, 40, 4), (2, 2, 80, 100, 2), (1, 2, 6, 6, 1), (1, 1, 200, 64, 7)]
KERNELS = TritonKernels()


@pytest.mark.parametrize(
    ("shape", "lane"), [*((shape, Lane.FP32) for shape in SHAPES), (SHAPES[3], Lane.BF16)], ids=str
)
def test_against_the_truth(shape, lane):
    delta_checks.check_against_the_truth(KERNELS, shape, lane)


def test_a_rows_bits_depend_on_its_path_alone():
    delta_checks.check_that_bits_depend_on_the_path_alone(KERNELS, (1, 2, 24, 40, 4))


def test_wanted_rows_are_the_same_rows():
    delta_checks.check_wanted_rows(KERNELS)


def test_forks_of_forks():
    delta_checks.check_forks_of_forks(KERNELS, 72)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_token_spoils_nothing_before_it(value):
    delta_checks.check_that_a_bad_token_spoils_nothing_before_it(KERNELS, SHAPES[3], value)


def test_fast_decay_keeps_its_neighbours():
    delta_checks.check_that_fast_decay_keeps_its_neighbours(KERNELS)


def test_equal_keys_are_solved_as_exactly_as_others():
    delta_checks.check_that_equal_keys_are_solved_as_exactly(KERNELS)


def test_sizes_without_a_kernel_are_refused():
    delta_checks.check_that_sizes_without_a_kernel_are_refused(KERNELS)
