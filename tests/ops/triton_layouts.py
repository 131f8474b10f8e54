"""Prints, as JSON, where Triton's compiler has the fragments of mma.m16n8k16: the bases of its linear layouts.

A process of its own, because Triton's bindings complain when an interpreter that has used them this way ends.
"""

from __future__ import annotations

import json

from triton._C.libtriton import gluon_ir, ir
from triton.experimental.gluon import language


def bases() -> dict[str, dict[str, list[list[int]]]]:
    """Of A [16, 16], B [16, 8] and C [16, 8] (row, column) of each bit of an element's index in a lane, and of the lane."""
    context = ir.context()
    ir.load_dialects(context)
    builder = gluon_ir.GluonOpBuilder(context)
    product = language.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8])
    layouts = {
        "a": (language.DotOperandLayout(0, product, 2), [16, 16]),
        "b": (language.DotOperandLayout(1, product, 2), [16, 8]),
        "c": (product, [16, 8]),
    }
    found = {}
    for name, (layout, shape) in layouts.items():
        linear = builder.to_linear_layout(layout._to_ir(builder), shape)
        found[name] = {"element": linear.reg_bases, "lane": linear.lane_bases}
    return found


if __name__ == "__main__":
    print(json.dumps(bases()))
