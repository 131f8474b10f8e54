"""How a Triton kernel is specialised: said once, for its launch and for its ahead-of-time build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Products and sums may be contracted to one operation: said at every launch, because Triton's default changes.
FUSION = {"enable_fp_fusion": True}


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

    @property
    def options(self) -> dict[str, Any]:
        """What triton.compile takes as `options`, and a launch as keywords."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, **FUSION}


def build_of(
    kernel: Any, label: str, types: Mapping[str, str], options: Mapping[str, Any], sizes: tuple[str, ...] = ("D",)
) -> Build:
    """A build from what a launch is given: the types of the arguments and the keywords.

    types may hold arguments that the kernel lacks, so that kernels can share them. Pointers are multiples of 16, as
    torch allocates them, and so are the arguments named in `sizes`.
    """
    launch = {"num_warps", "num_stages", *FUSION}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    return Build(
        kernel=kernel,
        label=label,
        signature=signature,
        constexprs={name: value for name, value in options.items() if name not in launch},
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        divisible_by_16=tuple(
            name for name, kind in signature.items() if kind.startswith("*") or (name in sizes and kind == "i32")
        ),
    )
