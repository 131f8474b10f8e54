"""Small kernels whose binaries are known beforehand: what the readings and the checks are tried on."""

import triton
import triton.language as tl

from psyfast.kernels.triton.build import build_of


@triton.jit
def product_kernel(a, b, c, K, BLOCK: tl.constexpr, INNER: tl.constexpr):
    rows, columns, inner = tl.arange(0, BLOCK), tl.arange(0, BLOCK), tl.arange(0, INNER)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, K, INNER):
        left = tl.load(a + rows[:, None] * K + start + inner[None, :])
        right = tl.load(b + columns[:, None] * K + start + inner[None, :])
        total = tl.dot(left, right.T, total, input_precision="ieee")
    tl.store(c + rows[:, None] * BLOCK + columns[None, :], total)


@triton.jit
def exponents_kernel(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.exp2(tl.load(x + at)))


def product(block=128, *, num_warps=4, num_stages=3):
    types = {"a": "*bf16", "b": "*bf16", "c": "*fp32", "K": "i32"}
    options = {"BLOCK": block, "INNER": 64, "num_warps": num_warps, "num_stages": num_stages}
    return build_of(product_kernel, "tiny/product", types, options, sizes=("K",))


def exponents():
    types = {"x": "*fp32", "y": "*fp32"}
    return build_of(
        exponents_kernel, "tiny/exponents", types, {"BLOCK": 512, "num_warps": 4, "num_stages": 1}, sizes=()
    )
