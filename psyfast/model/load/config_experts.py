"""What a configuration says of experts: how many, how wide, how many a token uses, and which layers have them."""

from __future__ import annotations

from psyfast.errors import ModelError
from psyfast.model.families import Family
from psyfast.model.load.config_values import Config, flag_at, positive_at
from psyfast.model.traits import ExpertTraits

MOST_EXPERTS = 10_000
"""More is a slip, and would be counted one by one."""

COUNTS = ("num_experts", "num_local_experts")
"""Both spellings of their number, of which transformers 5 writes either."""


def expert_traits(config: Config, family: Family, where: str) -> ExpertTraits | None:
    """Sizes of the layers that have experts, where the family does. Raises ModelError."""
    if family.expert_width is None:
        return None
    num_experts = _num_experts(config, where)
    num_used = positive_at(config, "num_experts_per_tok", where)
    if num_used > num_experts:
        raise ModelError(
            f"{where}: 'num_experts_per_tok' is {num_used}, but there are {num_experts} experts; expected no more than that"
        )
    width = positive_at(config, family.expert_width, where)
    normalised = flag_at(config, "norm_topk_prob", where)
    if not normalised and family.defaults.get("norm_topk_prob"):
        raise ModelError(
            f"{where}: 'norm_topk_prob' is false, expected true, or no such key: the weights of a token's experts always sum to "
            f"one in {family.architecture}"
        )
    return ExpertTraits(num_experts, num_used, width, normalised, biases=family.fused_experts)


def _num_experts(config: Config, where: str) -> int:
    said = {key: positive_at(config, key, where) for key in COUNTS if config.get(key) is not None}
    if not said:
        return positive_at(config, next((key for key in COUNTS if key in config), COUNTS[0]), where)
    if len(set(said.values())) > 1:
        got = " and ".join(map(str, said.values()))
        raise ModelError(f"{where}: 'num_experts' and 'num_local_experts' differ: {got}; expected one number")
    key, num_experts = next(iter(said.items()))
    if num_experts > MOST_EXPERTS:
        raise ModelError(f"{where}: '{key}' is {num_experts}, expected at most {MOST_EXPERTS:,}")
    return num_experts


def layers_with_experts(config: Config, family: Family, num_layers: int, where: str) -> list[bool]:
    """Every `decoder_sparse_step`th that `mlp_only_layers` does not name. Raises ModelError."""
    if family.expert_width is None:
        return [False] * num_layers
    step, dense = positive_at(config, "decoder_sparse_step", where, default=1), config.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(type(idx) is int and 0 <= idx < num_layers for idx in dense):
        raise ModelError(
            f"{where}: 'mlp_only_layers' is {dense!r}, expected a list of numbers of layers from 0 to {num_layers - 1}"
        )
    return [(idx + 1) % step == 0 and idx not in dense for idx in range(num_layers)]
