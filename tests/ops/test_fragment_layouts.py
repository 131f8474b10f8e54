"""Where mma's and ldmatrix's fragments lie in the emulation, held to what Triton's compiler knows of the instructions."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_programs import ROOT, compile_library

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed: no layouts to compare with", allow_module_level=True)

LANES = np.arange(32)


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    source = ROOT / "tests" / "native" / "cuda_fragments.cc"
    path: Path = compile_library("plain", source, tmp_path_factory.mktemp("fragments") / "fragments.so")
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def places() -> dict[str, np.ndarray]:
    """Of A [16, 16], B [16, 8] and C [16, 8] the row and column of each lane's elements: [32, elements, 2]."""
    script = ROOT / "tests" / "ops" / "triton_layouts.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: spread(found["element"], found["lane"]) for name, found in json.loads(done.stdout).items()}


def spread(of_element: list[list[int]], of_lane: list[list[int]]) -> np.ndarray:
    """A linear layout written out: an element's place is the XOR of the bases of the bits of its index and lane."""
    out = np.zeros((32 << len(of_element), 2), dtype=np.int64)
    for bit, base in enumerate([*of_element, *of_lane]):
        out[(np.arange(len(out)) >> bit) & 1 == 1] ^= np.array(base)
    return out.reshape(32, -1, 2)


def bits(values: torch.Tensor) -> np.ndarray:
    return values.view(torch.int16).numpy().view(np.uint16)


def packed(matrix: np.ndarray, at: np.ndarray) -> np.ndarray:
    """16-bit elements of a matrix as registers, the first of two in the low half: [32, elements / 2]."""
    parts = matrix[at[..., 0], at[..., 1]].astype(np.uint32)
    return np.ascontiguousarray(parts[:, 0::2] | parts[:, 1::2] << 16)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def product_by(emulation: ctypes.CDLL, places: dict[str, np.ndarray], dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """D of random integers, each exact, as the emulation has it and as it is."""
    print("torch seed", torch.seed())
    a, b, c = (torch.randint(-9, 10, shape).float() for shape in ((16, 16), (16, 8), (16, 8)))
    registers = [packed(bits(operand.to(dtype)), places[name]) for operand, name in ((a, "a"), (b, "b"))]
    sums = np.ascontiguousarray(c.numpy()[places["c"][..., 0], places["c"][..., 1]])
    emulation.warp_mma(int(dtype == torch.float16), *map(pointer, registers), pointer(sums))
    got = np.full((16, 8), np.nan, dtype=np.float32)
    got[places["c"][..., 0], places["c"][..., 1]] = sums
    return got, (a @ b + c).numpy()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mma_multiplies_fragments_laid_out_as_triton_has_them(emulation, places, dtype: torch.dtype) -> None:
    got, expected = product_by(emulation, places, dtype)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(("name", "bit", "other"), [("a", 1, 2), ("b", 0, 1), ("c", 0, 1)])
def test_another_layout_gives_another_product(emulation, places, name: str, bit: int, other: int) -> None:
    """Two bits of an operand's register index swapped: what a slip in a table of layouts would be."""
    index = np.arange(places[name].shape[1])
    swapped = index & ~(1 << bit | 1 << other) | (index >> bit & 1) << other | (index >> other & 1) << bit
    wrong = places | {name: places[name][:, swapped]}
    got, expected = product_by(emulation, wrong, torch.bfloat16)
    assert not np.array_equal(got, expected)


# The operand that a load is for, where lane l's row starts (row, column), and how the 16 x 16 tile in memory becomes
# operands: as the kernels address q and y; k and W, [tokens, inner]; v, [keys, columns] by the transposing load.
LOADS: dict[str, tuple[str, bool, np.ndarray, np.ndarray, Callable[[np.ndarray], list[np.ndarray]]]] = {
    "q": ("a", False, LANES % 16, LANES // 16 * 8, lambda tile: [tile]),
    "k": ("b", False, LANES // 16 * 8 + LANES % 8, LANES // 8 % 2 * 8, lambda tile: [tile[:8].T, tile[8:].T]),
    "v": ("b", True, LANES // 8 % 2 * 8 + LANES % 8, LANES // 16 * 8, lambda tile: [tile[:, :8], tile[:, 8:]]),
}


@pytest.mark.parametrize("load", LOADS)
def test_ldmatrix_gives_the_fragments_that_mma_takes(emulation, places, load: str) -> None:
    name, transposed, row, column, operands = LOADS[load]
    tile = np.random.default_rng().permutation(256).astype(np.uint16).reshape(16, 16)
    memory = torch.from_numpy(tile.astype(np.int16)).clone()  # aligned to 16 bytes and more
    starts = np.ascontiguousarray(16 * row + column, dtype=np.int32)
    out = np.zeros((32, 4), dtype=np.uint32)
    emulation.warp_ldmatrix(ctypes.c_void_p(memory.data_ptr()), pointer(starts), int(transposed), pointer(out))
    expected = np.concatenate([packed(operand, places[name]) for operand in operands(tile)], axis=1)
    assert np.array_equal(out, expected)
