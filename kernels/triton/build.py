"""How a Triton kernel is specialised: said once, for its launch and for its ahead-of-time build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Build:
    """One specialisation of a kernel for one generation of GPUs.

    kernel: the @triton.jit function. label: unique among the builds of a generation, such as `attention/bf16/128`. signature: an argument's
    type as triton.compiler.ASTSource takes it (`*bf16`, `i32`, `fp32`, `constexpr`). constexprs: their values.
    divisible_by_16: arguments (pointers, strides) that are multiples of 16 at every launch, as the runtime would find.
    """

    kernel: Any
    label: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    divisible_by_16: tuple[str, ...] = ()
