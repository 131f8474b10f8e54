"""What is read from a binary, and that each check of the table can fail: on tiny kernels whose binaries are known."""

from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed: no kernel of ours can be compiled or read")

from tests.builds import tiny_kernels
from tests.builds.binaries import COUNTED, Binary, spilled_bytes
from tests.builds.page import END, START, rewritten
from tests.builds.table import faults, from_csv, is_product, losses, missing_units, to_csv
from tests.builds.triton_builds import compile_build

PLAIN = Binary(
    backend="triton",
    capability=80,
    kernel="attention/bf16/64",
    toolchain="triton 3.9.0",
    registers=128,
    stack=0,
    spill=0,
    shared=65_536,
    threads=128,
    counts=dict.fromkeys(COUNTED, 0) | {"HMMA": 32, "LDGSTS": 8},
)


def counted(**counts):
    return replace(PLAIN, counts={**PLAIN.counts, **counts})


@pytest.mark.parametrize(("capability", "unit"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA"), (120, "HMMA")])
def test_a_pipelined_product_has_its_generations_units(capability, unit):
    binary = compile_build(tiny_kernels.product(), capability)
    assert binary.counts[unit] > 0 and binary.counts["LDGSTS"] > 0
    assert faults(binary) == missing_units(binary) == []
    # Three stages of two operands of [128, 64] bf16, or two of them where the last is waited for at once.
    assert 2 * 2 * 128 * 64 * 2 <= binary.shared <= 3 * 2 * 128 * 64 * 2 + 1_024
    assert binary.threads == 128


def test_a_product_that_is_not_pipelined_has_no_asynchronous_copies():
    binary = compile_build(tiny_kernels.product(num_stages=1), 80)
    assert binary.counts["LDGSTS"] == 0
    assert missing_units(binary) == [f"{binary}: no asynchronous copies"]
    assert losses(binary, compile_build(tiny_kernels.product(), 80))


def test_a_product_of_one_warp_spills():
    binary = compile_build(tiny_kernels.product(num_warps=1), 80)
    assert binary.stack > 0 and binary.spill > 0 and binary.registers == 255
    assert len(faults(binary)) == 2


def test_a_kernel_without_a_product_has_no_tensor_cores_and_its_exponents():
    binary = compile_build(tiny_kernels.exponents(), 90)
    assert binary.counts["MUFU"] == 512 // 128
    assert missing_units(binary) == [f"{binary}: no HGMMA", f"{binary}: no asynchronous copies"]


def test_the_plain_example_is_without_fault():
    assert faults(PLAIN) == losses(PLAIN, PLAIN) == missing_units(PLAIN) == []


@pytest.mark.parametrize(
    "change",
    [
        {"stack": 8},
        {"spill": 4},
        {"threads": 1_056, "registers": 32},
        {"threads": 512, "registers": 129},  # given out in eights: 136
        {"shared": 166_913},
        {"capability": 120, "shared": 101_377},
        {"capability": 90, "shared": 232_449},
    ],
)
def test_each_limit_holds(change):
    assert len(faults(replace(PLAIN, **change))) == 1


def test_the_limits_themselves_are_allowed():
    assert faults(replace(PLAIN, threads=512, registers=128, shared=166_912)) == []


@pytest.mark.parametrize(
    ("worse", "lost"),
    [
        (replace(PLAIN, registers=137), 1),
        (replace(PLAIN, registers=136), 0),
        (replace(PLAIN, shared=65_536 + 1_025), 1),
        (counted(HMMA=31), 1),
        (counted(LDGSTS=7), 1),
        (counted(HMMA=33, MUFU=5), 0),
    ],
)
def test_losses_are_told_beyond_the_slack(worse, lost):
    assert len(losses(worse, PLAIN)) == lost


def test_hoppers_own_units_are_asked_of_triton_and_warp_level_ones_of_cuda():
    hopper = replace(PLAIN, capability=90)
    assert missing_units(hopper) == [f"{hopper}: no HGMMA"]
    assert missing_units(replace(hopper, backend="cuda")) == []


@pytest.mark.parametrize(
    ("backend", "kernel", "product"),
    [
        ("triton", "attention/fp16/128/all", True),
        ("triton", "linear_nll/partials/bf16/cap", True),
        ("triton", "linear_nll/partials/fp32", False),
        ("triton", "linear_nll/gathered/bf16", False),
        ("cuda", "attention/attention_kernel<__nv_bfloat16,64>", True),
        ("cuda", "attention/attention_kernel<64,__half>", True),
        ("cuda", "attention/attention_kernel<float,64>", False),
        ("cuda", "linear_nll/merge_kernel<__half>", False),
        ("cuda", "linear_nll/partials_kernel<__half,true>", True),
        ("cuda", "linear_nll/partials_kernel<__half,false>", False),
        ("cuda", "rows/heads_kernel<__half>", False),
    ],
)
def test_products_are_known_by_their_names(backend, kernel, product):
    assert is_product(replace(PLAIN, backend=backend, kernel=kernel)) == product


def test_spilled_bytes_follow_the_width_of_each_instruction():
    code = "STL [R1], R2 ;\nSTL.64 [R1+0x8], R4 ;\nLDL.LU.128 R8, [R1] ;\nLDL.U8 R8, [R1] ;\nLDS R3, [R1] ;"
    assert spilled_bytes(code) == 4 + 8 + 16 + 1


def test_a_table_is_read_as_it_was_written():
    binaries = [replace(PLAIN, capability=90), counted(MUFU=3)]
    assert from_csv(to_csv(binaries)) == sorted(binaries, key=lambda b: b.key)


def test_the_page_keeps_what_stands_around_its_tables():
    page = rewritten(f"before\n{START}old\n{END}after\n", [PLAIN])
    assert page.startswith("before\n") and page.endswith("after\n") and "old" not in page
    assert "| `attention/bf16/64` | 80 | 128 | 128 | 0, 0 | 65,536 | 32 HMMA | 8 LDGSTS | 0 |" in page
