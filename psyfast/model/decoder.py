"""One decoder layer as a sequence of operators."""

from __future__ import annotations

from torch import Tensor

from psyfast.ops.records import LayerWeights, Pages
from psyfast.ops.registry import Operators


def run_layer(x_TD: Tensor, pages: Pages, weights: LayerWeights, ops: Operators) -> None:
    """x_TD through one layer, in place; the pages hold this layer's K and V afterwards."""
    q_THE = ops.attn_in(x_TD, pages, weights.attn_in, lane=ops.lane)
    o = ops.attention(q_THE, pages, weights.attention, lane=ops.lane)
    ops.attn_out(o, x_TD, weights.attn_out, lane=ops.lane)
    ops.mlp(x_TD, weights.mlp, lane=ops.lane)
