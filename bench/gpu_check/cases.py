"""The cases of numerics: every kernel on fresh random inputs, at awkward shapes and with all that a family may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench.gpu_check.attention_problems import Attention, caterpillar, segments
from bench.gpu_check.delta_problems import DeltaRule, ShortConvolution
from bench.gpu_check.head_problems import Head
from bench.gpu_check.problems import AddRows, CopySlots, Gated, Heads, NormRows, Problem
from psyfast.ops.gpu.kernel_set import DeltaSizes, HeadsShape

HEAD_DIMS = (64, 80, 96, 128, 256)
OPERATORS = (
    "norm_rows",
    "heads",
    "copy_slots",
    "add_rows",
    "gated",
    "attention",
    "short_convolution",
    "delta_rule",
    "linear_nll",
)
GROUPS = (
    *(f"linear_nll {dtype}" for dtype in ("bf16", "fp16", "fp32")),
    *(f"attention {head_dim}" for head_dim in HEAD_DIMS),
    "rows",
    "heads",
    "delta_rule",
)
LANES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Case:
    """A problem by name, made when it is wanted. cost: about how many operations; tests on a CPU leave out the dear ones."""

    operator: str
    label: str
    cost: float
    make: Callable[[torch.device], Problem]

    @property
    def group(self) -> str:
        """Cases of a group share a process: what must be compiled for them is divided so that no process has too much."""
        words = self.label.split()
        kind = {"attention": words[1], "linear_nll": words[0]}.get(self.operator)
        if kind is not None:
            return f"{self.operator} {kind}"
        if self.operator in ("short_convolution", "delta_rule"):
            return "delta_rule"
        return "heads" if self.operator in ("heads", "copy_slots") else "rows"


def all_cases() -> Iterator[Case]:
    """Operator by operator."""
    for dtype in LANES:
        yield from _rows(dtype)
        yield from _attention(dtype)
    yield from _delta_rule()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from _head(dtype)


def short(dtype: torch.dtype) -> str:
    """Bf16, fp16, fp32."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def _rows(dtype: torch.dtype) -> Iterator[Case]:
    name = short(dtype)
    for rows, hidden in ((1, 64), (3, 80), (127, 1000), (65, 2048), (33, 5120), (4099, 576)):
        for kind in ("plain", "offset", "none"):
            yield Case(
                "norm_rows",
                f"{name} {rows}x{hidden} {kind}",
                rows * hidden,
                lambda d, r=rows, h=hidden, k=kind: NormRows.random(r, h, dtype, d, kind=k),
            )
        for activation in ("silu", "gelu", "gelu_pytorch_tanh"):
            yield Case(
                "gated",
                f"{name} {rows}x{hidden} {activation}",
                rows * hidden,
                lambda d, r=rows, h=hidden, a=activation: Gated.random(r, h, a, dtype, d),
            )
        for bias, norm in ((False, False), (True, False), (True, True)) if dtype == torch.float32 else ():
            yield Case(
                "add_rows",
                f"{name} {rows}x{hidden}{' bias' * bias}{' norm' * norm}",
                rows * hidden,
                lambda d, r=rows, h=hidden, b=bias, n=norm: AddRows.random(r, h, d, bias=b, norm=n),
            )
    for rows, shape, traits in _heads_traits():
        said = " ".join(f"{key}={value}" for key, value in traits.items())
        yield Case(
            "heads",
            f"{name} {rows} rows, {shape.num_heads}/{shape.num_kv_heads} of {shape.head_dim} {said}".strip(),
            rows * (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim,
            lambda d, r=rows, s=shape, t=traits: Heads.random(r, s, dtype, d, **t),
        )
    for runs, head_dim in ((0, 64), (1, 80), (37, 128), (5, 256)):
        yield Case(
            "copy_slots",
            f"{name} {runs} runs of {head_dim}",
            runs * 64 * head_dim,
            lambda d, r=runs, e=head_dim: CopySlots.random(r, 2, e, dtype, d),
        )


def _heads_traits() -> Iterator[tuple[int, HeadsShape, dict[str, object]]]:
    for rows, head_dim in zip((1, 7, 65, 129, 31), HEAD_DIMS, strict=True):
        yield rows, HeadsShape(6, 2, head_dim), {}
        yield rows, HeadsShape(4, 4, head_dim), {"norm": "head", "bias": True}
        yield rows, HeadsShape(3, 1, head_dim), {"norm": "together"}
        yield rows, HeadsShape(2, 1, head_dim), {"rotated_pairs": head_dim // 4}
        yield rows, HeadsShape(2, 2, head_dim), {"rotated_pairs": 0, "bias": True}
    yield 33, HeadsShape(6, 0, 64), {"norm": "head"}
    yield 33, HeadsShape(0, 2, 64), {"bias": True}
    yield 2049, HeadsShape(32, 8, 128), {"norm": "head"}


def _delta_rule() -> Iterator[Case]:
    """fp32 in both lanes."""
    forests = {
        "1 token": segments(1),
        "63, 64, 65 tokens": segments(63, 64, 65),
        "caterpillar": [caterpillar(150, 13, 2), *segments(3)],
        "two caterpillars": [caterpillar(700, 9, 3), caterpillar(331, 50, 70, first_id=5000)],
    }
    shapes = ((1, 1, 16, 16, 4), (2, 4, 24, 40, 3), (1, 2, 128, 128, 4), (1, 1, 200, 100, 7), (2, 4, 256, 256, 4))
    sizes_of = [(DeltaSizes(K, H, E, V), taps) for K, H, E, V, taps in shapes]
    labelled = [(label, requests, *sizes) for label, requests in forests.items() for sizes in sizes_of]
    labelled.append(("a segment of 8,193", segments(8193), DeltaSizes(16, 16, 128, 128), 4))
    for label, requests, sizes, taps in labelled:
        rows = sum(request.num_tokens for request in requests)
        said = f"{sizes.num_key_heads}/{sizes.num_value_heads} of {sizes.key_dim}x{sizes.value_dim}"
        channels = 2 * sizes.num_key_heads * sizes.key_dim + sizes.num_value_heads * sizes.value_dim
        yield Case(
            "short_convolution",
            f"fp32 {label}, {said}, {taps} taps",
            rows * channels * taps,
            lambda d, r=requests, s=sizes, t=taps: ShortConvolution.random(r, s, t, d),
        )
        yield Case(
            "delta_rule",
            f"fp32 {label}, {said}",
            6.0 * rows * sizes.num_value_heads * sizes.key_dim * sizes.value_dim,
            lambda d, r=requests, s=sizes: DeltaRule.random(r, s, d),
        )


def _attention(dtype: torch.dtype) -> Iterator[Case]:
    forests = {
        "1 token": segments(1),
        "63, 64, 65 tokens": segments(63, 64, 65),
        "257 tokens": segments(257),
        "caterpillar": [caterpillar(150, 13, 2), *segments(3)],
        "two caterpillars": [caterpillar(700, 9, 3), caterpillar(331, 50, 70, first_id=5000)],
    }
    plain = [(forest, {}) for forest in forests]
    traits = [
        ("caterpillar", {"window": 40}),
        ("caterpillar", {"soft_cap": 2.0}),
        ("caterpillar", {"sinks": True}),
        ("two caterpillars", {"window": 129, "soft_cap": 3.0, "sinks": True}),
        ("257 tokens", {"window": 1}),
    ]
    for head_dim in HEAD_DIMS:
        for forest, options in plain + traits:
            requests = forests[forest]
            said = " ".join(f"{key}={value}" for key, value in options.items())
            pairs = sum(request.num_tokens * request.num_inputs for request in requests)
            yield Case(
                "attention",
                f"{short(dtype)} {head_dim} {forest} {said}".strip(),
                4.0 * head_dim * 6 * pairs,
                lambda d, r=requests, e=head_dim, o=options: Attention.random(r, 6, 2, e, dtype, d, **o),
            )
    yield Case(
        "attention",
        f"{short(dtype)} 128 a segment of 8,193",
        4.0 * 128 * 8 * 8193.0**2,
        lambda d: Attention.random(segments(8193), 8, 1, 128, dtype, d),
    )


def _head(dtype: torch.dtype) -> Iterator[Case]:
    name = short(dtype)
    shapes = [
        (1, 1, 1, 0),
        (1, 5, 3, 1),
        (2, 64, 16, 1),
        (3, 65, 15, 3),
        (5, 1024, 31, 64),
        (13, 1009, 37, 3),
        (129, 2053, 96, 5),
        (257, 4099, 576, 2),
    ]
    for rows, vocab, hidden, options in [*shapes, (9, 262_144, 64, 4), (67, 151_936, 256, 8)]:
        yield Case(
            "linear_nll",
            f"{name} {rows} rows, {vocab} x {hidden}, {options} options",
            2.0 * rows * vocab * hidden,
            lambda d, r=rows, v=vocab, h=hidden, k=options: Head.random(r, v, h, dtype, d, num_options=k),
        )
    for scale, cap in ((0.25, None), (-3.0, None), (1.0, 30.0), (1.5, 0.5), (1e-4, None)):
        yield Case(
            "linear_nll",
            f"{name} scale={scale} soft_cap={cap}",
            2.0 * 20 * 333 * 40,
            lambda d, s=scale, c=cap: Head.random(20, 333, 40, dtype, d, num_options=4, scale=s, soft_cap=c),
        )
    for label, make in (
        ("ties", Head.of_integers),
        ("-inf", Head.with_minus_infinity),
        ("bad rows", Head.with_bad_rows),
    ):
        yield Case(
            "linear_nll",
            f"{name} {label}",
            2.0 * 50 * 2300 * 24,
            lambda d, m=make: m(50, 2300, 24, dtype, d),
        )
