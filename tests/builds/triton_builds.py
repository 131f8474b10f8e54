"""Compiles every specialisation that kernels/triton ships, for every generation, without a GPU."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tests.builds.binaries import Binary, read

KERNELS = Path(__file__).resolve().parents[2] / "kernels" / "triton"
CAPABILITIES = (80, 90, 100, 120)
THREADS_A_WARP = 32


def modules() -> list[str]:
    """The kernel modules: those that say what they are built for."""
    return [path.stem for path in sorted(KERNELS.glob("*.py")) if "\ndef builds(" in path.read_text(encoding="utf-8")]


@cache
def builds(module: str, capability: int) -> dict[str, Any]:
    """A module's builds for a generation, by label."""
    found = list(importlib.import_module(f"psyfast.kernels.triton.{module}").builds(capability))
    by_label = {build.label: build for build in found}
    assert len(by_label) == len(found), f"two builds of {module} for sm_{capability} have the same label"
    return by_label


def jobs() -> list[tuple[str, int, str]]:
    """(module, capability, label) of every build."""
    return [(module, cap, label) for module in modules() for cap in CAPABILITIES for label in builds(module, cap)]


def is_usual(job: tuple[str, int, str]) -> bool:
    """All but fp16's builds, and fp32's with every trait."""
    parts = set(job[2].split("/"))
    return "fp16" not in parts and not ("fp32" in parts and parts & {"all", "cap"})


def is_quick(job: tuple[str, int, str]) -> bool:
    """Plain builds of bf16, and those that have no operand type."""
    return not set(job[2].split("/")) & {"fp16", "fp32", "all", "cap"}


def compiled(job: tuple[str, int, str]) -> Binary:
    """One of them."""
    module, capability, label = job
    return compile_build(builds(module, capability)[label], capability)


def compile_build(build: Any, capability: int) -> Binary:
    """A psyfast.kernels.triton.build.Build as machine code for a generation."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in build.divisible_by_16}
    source = ASTSource(build.kernel, dict(build.signature), dict(build.constexprs), aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, THREADS_A_WARP), options=build.options)
    with tempfile.TemporaryDirectory(prefix="psyfast-cubin-") as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        (binary,) = read(cubin, "triton", capability, f"triton {triton.__version__}")
    # All of a Triton kernel's shared memory is asked for at the launch.
    return replace(binary, kernel=build.label, shared=kernel.metadata.shared)
