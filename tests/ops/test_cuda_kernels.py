"""The CUDA kernels, compiled for the CPU from their own sources: against fp64, bit against bit, and bad arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda_builds import emulated_module

from bench.gpu_check import determinism, numerics
from bench.gpu_check.cases import OPERATORS, Case, all_cases
from psyfast.errors import BackendError
from psyfast.ops.gpu.cuda_kernels import CudaKernels
from psyfast.ops.gpu.kernel_set import DeviceNorm, HeadsShape, HeadsTraits
from psyfast.ops.gpu.tiles import plan_tiles
from tests.ops.attention_cases import (
    GROUPS,
    attend,
    check_attention,
    forest,
    make_case,
    rows_by_sequence,
    tiles_of_case,
)

CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DEAREST = {"attention": 4e7, "linear_nll": 4e6, "delta_rule": 2e7}


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels(emulated_module())


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    print("torch seed", torch.seed())  # shown when a test fails


def affordable(operator: str) -> list[Case]:
    return [case for case in all_cases() if case.operator == operator and case.cost < DEAREST.get(operator, 2e5)]


@pytest.mark.parametrize("operator", OPERATORS)
def test_gpu_checks_cases_pass(kernels: CudaKernels, operator: str) -> None:
    """The cases that a GPU will be given, those of them that a CPU can afford."""
    cases = affordable(operator)
    rows = list(numerics.check_cases(cases, kernels, CPU, torch.seed() % 2**31, lambda: False))
    assert len(rows) >= 6
    assert [row for row in rows if not row["passed"]] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_are_kept_alone_in_company_and_among_ties(kernels: CudaKernels, dtype: torch.dtype) -> None:
    made = determinism.problems(dtype, CPU, large=False)
    rows = list(determinism.check_determinism(made, kernels, lambda: False, runs=2))
    assert len(rows) > 10
    assert [row["case"] for row in rows if not row["passed"]] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_order_of_blocks_warps_and_lanes_changes_no_bit(kernels: CudaKernels, dtype: torch.dtype) -> None:
    module = emulated_module()
    made = determinism.problems(dtype, CPU, large=False)
    found = []
    for seed in (0, 1, 2):
        module.set_seed(seed)
        found.append({name: problem.run(kernels) for name, problem in made.items()})
    module.set_seed(0)
    for name in made:
        for other in found[1:]:
            assert determinism.same_bits(found[0][name], other[name]), name


def shifted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, one element past where they could be moved 16 bytes at a time."""
    moved = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape).copy_(tensor)
    assert moved.data_ptr() % 16 == tensor.element_size()
    return moved


@pytest.mark.parametrize("width", [4, 64, 1036, 2048])
def test_add_rows_gives_the_same_bits_where_rows_are_not_aligned(kernels: CudaKernels, width: int) -> None:
    x, y, bias, weight = torch.randn(3, width), torch.randn(3, width), torch.randn(width), torch.randn(width)

    def added(at, has_bias, has_norm):
        given = [shifted(tensor) if i == at else tensor.clone() for i, tensor in enumerate((x, y, bias, weight))]
        norm = DeviceNorm(given[3], 1e-6, unit_offset=True) if has_norm else None
        kernels.add_rows(given[0], given[1], given[2] if has_bias else None, norm)
        return given[0]

    for has_bias, has_norm in ((True, True), (True, False), (False, True), (False, False)):
        aligned = added(None, has_bias, has_norm)
        assert not torch.equal(aligned, x)
        for at in range(4):
            assert torch.equal(added(at, has_bias, has_norm), aligned), at


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_gated_gives_the_same_bits_where_rows_are_not_aligned(kernels: CudaKernels, dtype, activation: str) -> None:
    for width in (4, 1036):
        gate_up = 3 * torch.randn(3, 2 * width)
        aligned = kernels.gated(gate_up, activation, dtype)
        assert torch.equal(kernels.gated(shifted(gate_up), activation, dtype), aligned)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 6, 64, 80])
def test_slots_are_copied_wherever_pages_begin(kernels: CudaKernels, dtype: torch.dtype, head_dim: int) -> None:
    """With heads that are no multiple of 16 bytes, and runs that begin or end within one; empty runs, too."""
    pages = [torch.randn(5, 3, 64, head_dim).to(dtype) for _ in range(2)]
    runs = torch.tensor([[0, 1, 3, 64], [2, 1, 0, 3], [0, 3, 7, 8], [4, 3, 9, 9], [0, 4, 0, 64]])
    expected = [tensor.clone() for tensor in pages]
    for before, after in zip(pages, expected, strict=True):
        for page_from, page_to, first, last in runs.tolist():
            after[page_to, :, first:last] = before[page_from, :, first:last]
    for place in (torch.clone, shifted):
        k, v = place(pages[0]), pages[1].clone()
        kernels.copy_slots((k, v), runs)
        assert torch.equal(k, expected[0])
        assert torch.equal(v, expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_attention_over_a_forest(kernels: CudaKernels, dtype: torch.dtype, head_dim: int) -> None:
    num_kv_heads = 1 if head_dim in (64, 256) else 2
    batch = forest(head_dim, (67, 130))
    check_attention(kernels, make_case(batch, 2, num_kv_heads, head_dim, dtype, seed=head_dim))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("num_kv_heads", "group"), GROUPS)
def test_query_heads_that_share_key_heads(kernels: CudaKernels, num_kv_heads: int, group: int, dtype) -> None:
    batch = forest(group, (67,))
    check_attention(kernels, make_case(batch, num_kv_heads * group, num_kv_heads, 64, dtype), window=50)


@pytest.mark.parametrize("window", [1, 40, 64, 65, 1000])
def test_windows(kernels: CudaKernels, window: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        check_attention(kernels, make_case(forest(2), 3, 1, 64, dtype), window=window)


def test_soft_cap_and_sinks(kernels: CudaKernels) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        case = make_case(forest(3), 2, 1, 64, dtype)
        check_attention(kernels, case, soft_cap=5.0)
        check_attention(kernels, case, sinks_H=torch.tensor([3.0, -2.0]))
        check_attention(kernels, case, soft_cap=2.0, window=50, sinks_H=torch.tensor([-4.0, 9.0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 33}, {"soft_cap": 4.0}], ids=str)
def test_a_rows_bits_do_not_depend_on_company_sharing_or_order(kernels, dtype, options) -> None:
    alone, others = rows_by_sequence(kernels, dtype, options)
    assert not torch.equal(alone[0], alone[1])
    for company in others:
        for i, row in company.items():
            assert torch.equal(row, alone[i]), i


def test_a_head_size_without_a_kernel_is_refused(kernels: CudaKernels) -> None:
    with pytest.raises(BackendError, match="heads of 72, expected one of 64, 80"):
        kernels.tile_shape(72, torch.bfloat16)


def test_tiles_of_another_shape_are_refused(kernels: CudaKernels) -> None:
    """Such as those that were planned for fp32, whose tiles have fewer rows."""
    case = make_case(forest(4), 2, 1, 64, torch.bfloat16)
    rows, pages = kernels.tile_shape(64, torch.float32)
    of_fp32 = plan_tiles(case.tables, rows, pages, None)
    of_more_pages = plan_tiles(case.tables, *kernels.tile_shape(64, torch.bfloat16), None)
    of_more_pages = replace(of_more_pages, key_pages=2)
    with pytest.raises(BackendError, match=r"tiles of 16 query rows and 1 key pages, expected 64 and 1; plan them"):
        attend(kernels, case, of_fp32)
    with pytest.raises(BackendError, match=r"tiles of 64 query rows and 2 key pages, expected 64 and 1"):
        attend(kernels, case, of_more_pages)


def test_numbers_that_an_int_cannot_hold_are_refused() -> None:
    """A head size that is 64 in its low 32 bits, and tiles whose number times the heads is 0 in 64 bits."""
    addresses = ["q", "k_pages", "v_pages", "o", "positions", "sinks", "tile_rows", "bounds", "index", "pages"]
    arguments = dict.fromkeys([*addresses, "block_rows", "stream", "window", "num_tiles"], 0)
    arguments |= {"num_heads": 4, "num_kv_heads": 1, "scale": 1.0, "soft_cap": 0.0, "operand": "bf16"}
    attention = emulated_module().attention
    attention(**arguments, head_dim=64)  # no tiles: nothing to do
    for head_dim in (2**32 + 64, -(2**32) + 64, 0, -64):
        with pytest.raises(ValueError, match=f"head_dim is {head_dim}, expected 64, 80, 96, 128 or 256"):
            attention(**arguments, head_dim=head_dim)
        assert not emulated_module().has_head_dim(head_dim)
    for num_tiles in (2**62, -1):
        with pytest.raises(ValueError, match=f"num_tiles is {num_tiles}, expected 0 to 2147483647"):
            attention(**arguments | {"num_tiles": num_tiles}, head_dim=64)


def test_what_the_bindings_refuse(kernels: CudaKernels) -> None:
    """Nothing is launched with a size or an address that cannot be meant."""
    x = torch.randn(3, 8)
    with pytest.raises(BackendError, match="activation is 'relu'"):
        kernels.gated(x, "relu", torch.bfloat16)
    with pytest.raises(BackendError, match="width is 0"):
        kernels.norm_rows(torch.empty(3, 0), None, torch.float32)
    with pytest.raises(BackendError, match="num_pairs is 5, expected 0 to 4"):
        angles = torch.ones(9, 5)
        traits = HeadsTraits(None, None, None, norm_heads_together=False)
        kernels.heads(
            x, HeadsShape(1, 0, 8), traits, (angles, angles), torch.zeros(3).long(), None, None, torch.float32
        )
    with pytest.raises(BackendError, match="slots is null"):
        traits = HeadsTraits(None, DeviceNorm(torch.ones(4), 1e-6, False), None, norm_heads_together=False)
        kernels.heads(
            x[:, :4].contiguous(), HeadsShape(0, 1, 2), traits, None, torch.zeros(3).long(), None, None, torch.float32
        )
    case = make_case(forest(4), 2, 1, 64, torch.float16)
    tiles = tiles_of_case(kernels, case, None)
    options = {"window": None, "soft_cap": None, "sinks_H": None}
    with pytest.raises(BackendError, match="scale must be positive"):
        kernels.attention(case.q_THE, case.kv_PKSE, case.positions_T, tiles, scale=-1.0, **options)
    with pytest.raises(BackendError, match="num_slots is 66, expected 1 to 65"):
        ids = torch.zeros(3, 65, dtype=torch.int64)
        kernels.linear_nll(x, torch.randn(5, 8), ids[:, 0].contiguous(), ids, scale=1.0, soft_cap=None)
