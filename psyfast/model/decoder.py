"""One decoder layer as a sequence of operators."""

from __future__ import annotations

from torch import Tensor

from psyfast.ops.records import Pages, PreparedLayer
from psyfast.ops.registry import Operators


def run_layer(
    x_TD: Tensor, pages: Pages, weights: PreparedLayer, ops: Operators, rows_N: Tensor | None = None
) -> Tensor:
    """x_TD after one layer, in place; the pages hold this layer's K and V afterwards, if it has some.

    rows_N: ascending indices of the tokens that are wanted; then x_ND is theirs alone, and no other is computed.
    """
    if weights.delta_rule is not None:
        o = ops.delta_rule(x_TD, pages, weights.delta_rule, lane=ops.lane, rows_N=rows_N)
    else:
        q = ops.attn_in(x_TD, pages, weights.attn_in, lane=ops.lane, rows_N=rows_N)
        o = ops.attention(q, pages if rows_N is None else pages.at(rows_N), weights.attention, lane=ops.lane)
    if rows_N is not None:
        x_TD = x_TD[rows_N]
    ops.attn_out(o, x_TD, weights.attn_out, lane=ops.lane)
    if weights.experts is not None:
        ops.experts(x_TD, weights.experts, lane=ops.lane)
    else:
        ops.mlp(x_TD, weights.mlp, lane=ops.lane)
    return x_TD
