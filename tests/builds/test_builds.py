"""Every kernel is compiled for every generation; none spills, exceeds a launch, or has got worse than the table says."""

import warnings

import pytest

from tests.builds import cuda_builds, triton_builds
from tests.builds.compile_all import compile_all
from tests.builds.table import TABLE, faults, from_csv, is_product, losses, missing_units

pytest.importorskip("triton", reason="Triton is not installed: no kernel of ours can be compiled or read")

TABLED = {binary.key: binary for binary in from_csv(TABLE.read_text(encoding="utf-8"))}


def tabled(backend):
    return {key: binary for key, binary in TABLED.items() if key[0] == backend}


@pytest.fixture(scope="module")
def triton_binaries():
    return [binary for binary, _ in compile_all(triton_builds.compiled, triton_builds.jobs())]


@pytest.fixture(scope="module")
def cuda_binaries():
    if not cuda_builds.nvcc():
        pytest.skip("nvcc is not installed: kernels/cuda is not compiled here")
    return [binary for found, _ in compile_all(cuda_builds.compiled, cuda_builds.jobs()) for binary in found]


@pytest.fixture(params=["triton", "cuda"])
def built(request):
    return request.param, request.getfixturevalue(f"{request.param}_binaries")


@pytest.mark.slow
def test_no_kernel_spills_or_exceeds_a_launch(built):
    _, binaries = built
    assert [fault for binary in binaries for fault in faults(binary)] == []


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


@pytest.mark.slow
def test_no_kernel_is_worse_than_the_table(built):
    backend, binaries = built
    before = tabled(backend)
    assert {str(binary) for binary in binaries} == {str(binary) for binary in before.values()}, "run make gpu-table"
    others = {(b.toolchain, before[b.key].toolchain) for b in binaries if b.toolchain != before[b.key].toolchain}
    if others:
        warnings.warn(f"not compared with the table: compilers differ, {others}", stacklevel=1)
        return
    assert [loss for binary in binaries for loss in losses(binary, before[binary.key])] == []
