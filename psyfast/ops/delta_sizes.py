"""Whether the weights of a gated delta rule fit together, asked by every backend that prepares them."""

from __future__ import annotations

from psyfast.errors import BackendError
from psyfast.ops.records import DeltaRuleWeights


def check_delta_rule(weights: DeltaRuleWeights) -> None:
    """BackendError unless key heads share value heads evenly, and vectors and the filter are of their sizes.

    Matrices and norms are checked where they are prepared.
    """
    K, H = weights.num_key_heads, weights.num_value_heads
    if K == 0 or H % K:
        raise BackendError(f"{H} value heads do not share {K} key heads evenly; check the model's configuration")
    for name, vector in (("log_rate", weights.log_rate_H), ("time_bias", weights.time_bias_H)):
        if vector.shape != (H,):
            raise BackendError(f"{name} has shape {list(vector.shape)}, expected [{H}]; check the weights")
    C, filter_CW = weights.num_channels, weights.conv_CW
    if filter_CW.dim() != 2 or filter_CW.shape[0] != C:
        raise BackendError(f"the filter has shape {list(filter_CW.shape)}, expected [{C}, taps]; check the weights")
