"""tanh in fp32 for Triton kernels, from exp2 alone: libdevice's is not to be had in the interpreter.

    |x| ≥ 0.6:  tanh |x| = 1 − 2 / (e^{2|x|} + 1)          below:  tanh x = x + x³ · P(x²), P minimax on [0, 0.36]

Error: 1e-7 relative below, 1.2e-7 above (two roundings). NaN stays NaN; ±inf gives ±1.
"""

from __future__ import annotations

import triton
import triton.language as tl

TWO_LOG2E = tl.constexpr(2.8853900817779268)


@triton.jit
def tanh(x):
    """Every sum is one fused operation or has no product in it: no kernel can contract it in its own way."""
    size = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp2(size * TWO_LOG2E) + 1.0)
    s = x * x
    p = tl.fma(s, -0.006276387590915353, 0.021116213957232587)
    p = tl.fma(s, p, -0.053875138193131375)
    p = tl.fma(s, p, 0.13332924006452562)
    p = tl.fma(s, p, -0.33333330431344677)
    near = tl.fma(s * p, x, x)
    return tl.where(size < 0.6, near, tl.where(x < 0.0, -far, far))
