"""Every kernel is compiled for every generation; none spills, exceeds a launch, or has got worse than the table says.

All builds take ten minutes on two cores, so that fp16's (bf16's twins) and fp32's with every trait are left to
PSYFAST_ALL_BUILDS=1; `make gpu-table` compiles them too. Another Triton than the table's compiles bf16's plain builds.
"""

import os

import pytest

from tests.builds import cuda_builds, triton_builds
from tests.builds.compile_all import compile_all
from tests.builds.table import TABLE, faults, from_csv, is_product, losses, missing_units

triton = pytest.importorskip("triton", reason="Triton is not installed: no kernel of ours can be compiled or read")

OTHER_TRITONS_STACK = 32
TABLED = {binary.key: binary for binary in from_csv(TABLE.read_text(encoding="utf-8"))}


def tabled(backend):
    return {key: binary for key, binary in TABLED.items() if key[0] == backend}


def is_tables_triton():
    """Whether the table was written by this Triton."""
    return {binary.toolchain for binary in tabled("triton").values()} == {f"triton {triton.__version__}"}


@pytest.fixture(scope="module")
def triton_jobs():
    if os.environ.get("PSYFAST_ALL_BUILDS") == "1":
        return triton_builds.jobs()
    chosen = triton_builds.is_usual if is_tables_triton() else triton_builds.is_quick
    return [job for job in triton_builds.jobs() if chosen(job)]


@pytest.fixture(scope="module")
def triton_binaries(triton_jobs):
    return [binary for binary, _ in compile_all(triton_builds.compiled, triton_jobs)]


@pytest.fixture(scope="module")
def cuda_binaries():
    if not cuda_builds.nvcc():
        # The CUDA toolkit is no Python package, and nothing but these tests and `_cuda` needs it.
        pytest.skip("nvcc is not installed: kernels/cuda is not compiled here")
    return [binary for found, _ in compile_all(cuda_builds.compiled, cuda_builds.jobs()) for binary in found]


@pytest.fixture(params=["triton", "cuda"])
def built(request):
    return request.param, request.getfixturevalue(f"{request.param}_binaries")


@pytest.mark.slow
def test_no_kernel_spills_or_exceeds_a_launch(built):
    _, binaries = built
    # An older Triton keeps a few registers of the largest tiles on the stack: tolerated where the table's does not.
    tolerated = 0 if is_tables_triton() else OTHER_TRITONS_STACK
    assert [fault for binary in binaries for fault in faults(binary, tolerated)] == []


@pytest.mark.slow
def test_products_use_tensor_cores_and_asynchronous_copies(built):
    _, binaries = built
    products = [binary for binary in binaries if is_product(binary)]
    assert [fault for binary in products for fault in missing_units(binary)] == []


@pytest.mark.slow
def test_the_products_of_every_generation_are_seen(triton_binaries):
    seen = {(binary.capability, binary.kernel.split("/")[0]) for binary in triton_binaries if is_product(binary)}
    kernels = [module for module in triton_builds.modules() if module in ("attention", "linear_nll")]
    assert seen == {(capability, kernel) for capability in triton_builds.CAPABILITIES for kernel in kernels}


def test_the_table_has_every_build_of_triton_and_no_other():
    built = {("triton", capability, label) for _, capability, label in triton_builds.jobs()}
    assert built == set(tabled("triton")), "run make gpu-table"


@pytest.mark.slow
def test_the_table_has_every_kernel_of_cuda_and_no_other(cuda_binaries):
    assert {binary.key for binary in cuda_binaries} == set(tabled("cuda")), "run make gpu-table"


@pytest.mark.slow
def test_no_kernel_is_worse_than_the_table(built):
    _, binaries = built
    before = [TABLED[binary.key] for binary in binaries]
    others = {(now.toolchain, then.toolchain) for now, then in zip(binaries, before, strict=True)}
    if any(now != then for now, then in others):
        # Registers and stack are a compiler's choice; that nothing spills is held for every compiler, above.
        pytest.skip(f"compilers differ from the table's, so their figures do: {others}")
    assert [loss for now, then in zip(binaries, before, strict=True) for loss in losses(now, then)] == []
