"""Whether the weights of a layer's experts fit together, asked by every backend that prepares them."""

from __future__ import annotations

from psyfast.errors import BackendError
from psyfast.ops.records import ExpertsWeights, Matrix
from psyfast.ops.reference import ACTIVATIONS
from psyfast.ops.reference_experts import CLAMPED_SWIGLU


def check_experts(weights: ExpertsWeights, hidden_size: int, feed_forward: int) -> None:
    """BackendError unless the router chooses among all experts, and each has projections and biases of these sizes."""
    X, D, F = weights.router.shape[0], hidden_size, feed_forward
    known = (*ACTIVATIONS, CLAMPED_SWIGLU)
    if weights.activation not in known:
        raise BackendError(f"activation '{weights.activation}' is not known; choose one of {', '.join(known)}")
    if not 1 <= weights.num_used <= X:
        raise BackendError(
            f"a token uses {weights.num_used} of {X} experts, expected 1 to {X}; check the model's configuration"
        )
    if not len(weights.gate_up_proj) == len(weights.down_proj) == X:
        got = f"{len(weights.gate_up_proj)} and {len(weights.down_proj)}"
        raise BackendError(f"experts have {got} projections, expected {X}, the router's rows; check the weights")
    shapes: dict[str, tuple[Matrix | None, tuple[int, ...]]] = {
        "router": (weights.router, (X, D)),
        "router_bias": (weights.router_bias, (X,)),
        "gate_up_bias": (weights.gate_up_bias, (X, 2 * F)),
        "down_bias": (weights.down_bias, (X, D)),
    }
    for e, (gate_up, down) in enumerate(zip(weights.gate_up_proj, weights.down_proj, strict=True)):
        shapes[f"gate_up_proj of expert {e}"] = gate_up, (2 * F, D)
        shapes[f"down_proj of expert {e}"] = down, (D, F)
    for name, (matrix, shape) in shapes.items():
        if matrix is not None and tuple(matrix.shape) != shape:
            raise BackendError(f"{name} has shape {list(matrix.shape)}, expected {list(shape)}; check the weights")
