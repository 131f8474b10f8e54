"""The emulation of CUDA finds what it is there to find: kernels with a deliberate fault, and the same without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated_programs import BUILDS, FOUND_ADDRESS, FOUND_RACE, ROOT, compile_program, run_program

WRONG_NUMBERS, REFUSED = 1, 2

# What the plain build, AddressSanitizer and ThreadSanitizer make of each fault, and what is said of it.
FAULTS = {
    "missing_barrier": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    "missing_barrier_before_reuse": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    "missing_warp_barrier": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    "warp_barrier_too_early": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    "wait_without_barrier": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    "copy_begun_too_early": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    "blocks_share_a_place": (WRONG_NUMBERS, WRONG_NUMBERS, FOUND_RACE, ""),
    # Lanes meet, so that the numbers come out right; their memory is not ordered.
    "shuffle_for_a_barrier": (0, 0, FOUND_RACE, ""),
    "ldmatrix_without_barrier": (0, 0, FOUND_RACE, ""),
    # A copy that nobody waits for never happens: no race, NaN.
    "missing_wait": (WRONG_NUMBERS, WRONG_NUMBERS, WRONG_NUMBERS, ""),
    "wait_for_too_few": (WRONG_NUMBERS, WRONG_NUMBERS, WRONG_NUMBERS, ""),
    "off_by_one_in_shared": (0, FOUND_ADDRESS, 0, "heap-buffer-overflow"),
    "off_by_one_in_global": (0, FOUND_ADDRESS, 0, "heap-buffer-overflow"),
    "copy_past_the_end": (0, FOUND_ADDRESS, 0, "heap-buffer-overflow"),
    "divergent_barrier": (REFUSED, REFUSED, REFUSED, "100 wait at __syncthreads"),
    "lanes_that_never_come": (REFUSED, REFUSED, REFUSED, "64 in a warp collective"),
    "mask_without_oneself": (REFUSED, REFUSED, REFUSED, "with a mask that lacks it"),
    "shuffle_from_outside_its_mask": (REFUSED, REFUSED, REFUSED, ", which its mask lacks"),
    "shuffle_down_out_of_its_mask": (REFUSED, REFUSED, REFUSED, "__shfl_down_sync reads from lane 16, which its mask"),
    "shuffle_from_a_negative_lane": (REFUSED, REFUSED, REFUSED, "__shfl_sync reads from lane -1; there are 0 to 31"),
    "shuffle_from_beyond_the_warp": (REFUSED, REFUSED, REFUSED, "__shfl_sync reads from lane 32; there are 0 to 31"),
    "shuffle_from_beyond_its_group": (REFUSED, REFUSED, REFUSED, "__shfl_sync reads from lane 8; there are 0 to 7"),
    "shuffle_among_six": (REFUSED, REFUSED, REFUSED, "among 6 lanes"),
    "shuffle_across_warps": (REFUSED, REFUSED, REFUSED, "__shfl_xor_sync reads from lane "),
    "shuffle_down_by_less_than_nothing": (REFUSED, REFUSED, REFUSED, "__shfl_down_sync by 4294967295 lanes"),
    "two_collectives_meet": (REFUSED, REFUSED, REFUSED, "lanes of a warp meet in"),
    "misaligned_copy": (REFUSED, REFUSED, REFUSED, "asynchronous copy of 16 bytes is not aligned"),
    "misaligned_ldmatrix": (REFUSED, REFUSED, REFUSED, "ldmatrix reads a row that is not aligned"),
    "too_many_threads": (REFUSED, REFUSED, REFUSED, "1025 threads a block"),
    "too_much_shared_memory": (REFUSED, REFUSED, REFUSED, "166913 bytes of shared memory"),
    "empty_grid": (REFUSED, REFUSED, REFUSED, "a grid that no device has"),
}


@pytest.fixture(scope="module", params=list(BUILDS))
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    program = tmp_path_factory.mktemp(request.param) / "cuda_faults"
    source = ROOT / "tests" / "native" / "cuda_faults.cc"
    return request.param, compile_program(request.param, source, program)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_absence_is_not(faults: tuple[str, Path], name: str) -> None:
    build, program = faults
    plain, address, thread, words = FAULTS[name]
    expected = {"plain": plain, "address": address, "thread": thread}[build]
    faulty = run_program(program, name, "faulty")
    assert faulty.returncode == expected, faulty.stderr[-4000:]
    if expected in (REFUSED, FOUND_ADDRESS):
        assert words in faulty.stderr
    if expected == FOUND_RACE:
        assert "data race" in faulty.stderr
    sound = run_program(program, name, "sound")
    assert (sound.returncode, sound.stderr) == (0, "")


def test_every_kernel_of_the_program_is_in_the_table() -> None:
    text = (ROOT / "tests" / "native" / "cuda_faults.cc").read_text(encoding="utf-8")
    kernels = {line.split("(")[0].split()[-1] for line in text.splitlines() if line.startswith("__global__ void ")}
    launches = {"too_many_threads", "too_much_shared_memory", "empty_grid"}
    assert kernels - {"mirrored"} == set(FAULTS) - launches
