"""How fast each kernel is on a model's shapes, beside others, and which share of the roofline that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu_check.attention_problems import Attention, caterpillar, segments
from bench.gpu_check.comparing import Results, Verdict, judge, largest, largest_error
from bench.gpu_check.contenders import Contender, others
from bench.gpu_check.delta_problems import DeltaRule, ShortConvolution
from bench.gpu_check.failures import kernel_errors, said
from bench.gpu_check.head_problems import Head
from bench.gpu_check.problems import AddRows, CopySlots, Gated, Heads, NormRows, Problem
from bench.gpu_check.roofline import Limits
from bench.gpu_check.timing import Clock, Timing, copies_beyond, timed
from psyfast.model.traits import Traits
from psyfast.ops.gpu.kernel_set import DeltaSizes, DeviceKernels, HeadsShape

Row = dict[str, Any]
ROUNDS = 15
CHECKED_ROWS = 96


@dataclass(frozen=True)
class Timed:
    """A problem of a model's sizes, made anew for every set of inputs that rotates."""

    operator: str
    label: str
    make: Callable[[], Problem]


def timed_problems(
    name: str, traits: Traits, dtype: torch.dtype, device: torch.device, *, tokens: int, rows: tuple[int, ...]
) -> Iterator[Timed]:
    """All kernels of a model: so many tokens, so many scored rows. The forest is a trunk with a branch every 16 tokens."""
    D, F, E = traits.hidden_size, traits.intermediate_size, traits.head_dim
    heads = HeadsShape(traits.num_heads, traits.num_kv_heads, E)
    qk_norm = "head" if traits.qk_norm else "none"
    for count in rows:
        yield Timed(
            "linear_nll",
            f"{name}, {count} rows",
            lambda n=count: Head.random(n, traits.vocab_size, D, dtype, device, num_options=4),
        )
    shape = (traits.num_heads, traits.num_kv_heads, E, dtype, device)
    trunk = max(32, tokens * 16 // 20)
    forests = {
        f"one segment of {tokens}": segments(tokens),
        f"16 segments of {max(1, tokens // 16)}": segments(*[max(1, tokens // 16)] * 16),
        f"caterpillar, trunk {trunk}, 4 tokens every 16": [caterpillar(trunk, 16, 4)],
    }
    for label, requests in forests.items():
        yield Timed("attention", f"{name}, {label}", lambda r=requests: Attention.random(r, *shape))
    yield Timed("norm_rows", f"{name}, {tokens} tokens", lambda: NormRows.random(tokens, D, dtype, device))
    yield Timed("heads", f"{name}, {tokens} tokens", lambda: Heads.random(tokens, heads, dtype, device, norm=qk_norm))
    yield Timed("add_rows", f"{name}, {tokens} tokens", lambda: AddRows.random(tokens, D, device))
    yield Timed("gated", f"{name}, {tokens} tokens", lambda: Gated.random(tokens, F, "silu", dtype, device))
    yield Timed(
        "copy_slots",
        f"{name}, {max(1, tokens // 20)} runs",
        lambda: CopySlots.random(max(1, tokens // 20), traits.num_kv_heads, E, dtype, device),
    )


def timed_delta_rule(device: torch.device, *, tokens: int) -> Iterator[Timed]:
    """The sizes of Qwen3.5's 0.8B and 27B (text_config of the models' config.json: linear_num_key_heads and the like)."""
    trunk = max(32, tokens * 16 // 20)
    forests = {
        f"one segment of {tokens}": segments(tokens),
        f"16 segments of {max(1, tokens // 16)}": segments(*[max(1, tokens // 16)] * 16),
        f"caterpillar, trunk {trunk}, 4 tokens every 16": [caterpillar(trunk, 16, 4)],
    }
    for name, sizes in {
        "Qwen3.5-0.8B": DeltaSizes(16, 16, 128, 128),
        "Qwen3.5-27B": DeltaSizes(16, 48, 128, 128),
    }.items():
        for label, requests in forests.items():
            yield Timed("delta_rule", f"{name}, {label}", lambda r=requests, s=sizes: DeltaRule.random(r, s, device))
        yield Timed(
            "short_convolution",
            f"{name}, {tokens} tokens",
            lambda s=sizes: ShortConvolution.random(segments(tokens), s, 4, device),
        )


def measure(
    timed_problem: Timed,
    backends: Mapping[str, DeviceKernels],
    clock: Clock,
    limits: Limits,
    is_late: Callable[[], bool],
    *,
    usable: tuple[str, ...],
    l2_bytes: int,
    seed: int,
    rounds: int = ROUNDS,
) -> Iterator[Row]:
    """A row a contender: compared first, on the same inputs, with the truth; then timed in turn with all others.

    usable: names of those others that may be tried.
    """
    torch.manual_seed(seed)
    first = timed_problem.make()
    made = [first] + [timed_problem.make() for _ in range(copies_beyond(l2_bytes, first.work.num_bytes) - 1)]
    bound_by, bound_s = limits.bound(first.work)
    row = {"operator": timed_problem.operator, "case": timed_problem.label, "seed": seed}
    row |= {"bound_by": bound_by, "bound_s": bound_s, **asdict(first.work)}
    sample = Sample.of(first)
    calls: dict[str, list[Callable[[], object]]] = {}
    found: dict[str, list[Verdict]] = {}
    for name, kernels in backends.items():
        try:
            found[name] = sample.judge_own(first.run(kernels))
            calls[name] = [problem.once(kernels) for problem in made]
        except kernel_errors() as error:
            yield {**row, "contender": name, "ours": True, "passed": False, "error": said(error)}
    try:
        for contender, *rest in zip(*(others(problem, usable) for problem in made), strict=True):
            found[contender.name] = sample.judge_other(contender)
            calls[contender.name] = [contender.call, *(other.call for other in rest)]
    except kernel_errors() as error:
        yield {**row, "contender": "others", "ours": False, "error": said(error)}
    del sample
    if not calls:
        return
    for name, timing in timed(calls, clock, rounds, is_late).items():
        ours = name in backends
        result = {**row, "contender": name, "ours": ours, "errors": {v.output: v.error for v in found[name]}}
        result["passed"] = all(verdict.passed for verdict in found[name])
        if ours and isinstance(first, Attention):
            result["tiled_flop"] = first.tiled_flop(backends[name])
        yield {**result, **rates(first, timing, bound_s)}


@dataclass(frozen=True)
class Sample:
    """Some rows of a problem (None: all of one that has no rows), with what is true of them."""

    problem: Problem
    rows: Tensor | None
    truth: Results
    of_torch: Results

    @classmethod
    def of(cls, problem: Problem) -> Sample:
        """The first row, the last, and some between: the truth of all would take longer than everything else."""
        if isinstance(problem, (CopySlots, DeltaRule, ShortConvolution)):
            return cls(problem, None, problem.truth(), problem.in_torch())
        device = next(value.device for value in vars(problem).values() if isinstance(value, Tensor))
        count = problem.num_rows
        rows = torch.linspace(0, count - 1, min(count, CHECKED_ROWS)).long().unique().to(device)
        some = problem.only(rows)
        return cls(problem, rows, some.truth(), some.in_torch())

    def judge_own(self, got: Results) -> list[Verdict]:
        """A backend's results, all rows of them."""
        of_rows = got if self.rows is None else self.problem.rows_of(got, self.rows)
        return judge(of_rows, self.truth, self.of_torch, self.problem.floors(self.truth))

    def judge_other(self, contender: Contender) -> list[Verdict]:
        """Somebody else's result: its error, and whether it is of the same thing at all (5 % of the largest value)."""
        truth = self.truth[contender.output]
        got = contender.as_output(contender.call())
        error, bound = largest_error(got if self.rows is None else got[self.rows], truth), 0.05 * largest(truth)
        return [Verdict(contender.output, error <= bound, error, error, bound)]


def rates(problem: Problem, timing: Timing, bound_s: float) -> Row:
    """What a time means."""
    return {
        **asdict(timing),
        "flop_per_s": problem.work.flop / timing.median_s,
        "bytes_per_s": problem.work.num_bytes / timing.median_s,
        "share_of_roofline": bound_s / timing.median_s,
    }
