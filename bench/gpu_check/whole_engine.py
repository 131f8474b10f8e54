"""The whole engine on a model's shapes: its NLLs beside the reference's, its tokens/s, its share of the matrix rate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bench.gpu_check.failures import kernel_errors, said
from bench.gpu_check.random_model import RandomModel, ResidentWeights, StreamedWeights, transcripts
from psyfast.engine import Engine, WeightSource, model_shape
from psyfast.model.traits import Traits
from psyfast.ops.records import Lane
from psyfast.ops.registry import Operators
from psyfast.plan.batch import Batch, plan_batch
from psyfast.plan.flops import required_flop

Row = dict[str, Any]
ROUNDS = 3
CHECKED_TOKENS = 600

Resolve = Callable[[str, Lane], Operators]
"""Operators of a backend for a lane, on the device of the check."""


@dataclass(frozen=True)
class EngineCheck:
    """What to run and on what."""

    name: str
    traits: Traits
    device: torch.device
    resolve: Resolve
    num_tokens: int
    seed: int

    def run(
        self, backends: tuple[str, ...], flop_per_s: float, is_late: Callable[[], bool], rounds: int = ROUNDS
    ) -> Iterator[Row]:
        """A row a backend and kind of weights: errors first, on a short batch, then the speed of a long one."""
        torch.manual_seed(self.seed)
        model = RandomModel(self.traits, self.device)
        checked = plan_batch(transcripts(CHECKED_TOKENS, self.traits.vocab_size, self.seed)).batch
        timed = plan_batch(transcripts(self.num_tokens, self.traits.vocab_size, self.seed + 1)).batch
        exact, own = (self._nlls(model, "reference", lane, checked) for lane in (Lane.FP32, Lane.BF16))
        allowed = {"mean": (own - exact).abs().mean().item(), "max": (own - exact).abs().max().item()}
        for backend in backends:
            row = {"case": self.name, "contender": backend, "seed": self.seed}
            if is_late():
                yield {**row, "left_out": True}
                continue
            try:
                yield from self._of_backend(row, model, (checked, timed), exact, allowed, flop_per_s, rounds, is_late)
            except kernel_errors() as error:
                yield {**row, "passed": False, "error": said(error)}

    def _of_backend(
        self,
        row: Row,
        model: RandomModel,
        batches: tuple[Batch, Batch],
        exact: torch.Tensor,
        allowed: Mapping[str, float],
        flop_per_s: float,
        rounds: int,
        is_late: Callable[[], bool],
    ) -> Iterator[Row]:
        checked, timed = batches
        operators = self.resolve(row["contender"], Lane.BF16)
        error = (self._nlls(model, row["contender"], Lane.BF16, checked) - exact).abs()
        close = error.mean().item() <= 2 * allowed["mean"] and error.max().item() <= 2 * allowed["max"]
        row |= {
            "passed": bool(close),
            "nll_error_mean": error.mean().item(),
            "nll_error_max": error.max().item(),
            "reference_bf16_error_mean": allowed["mean"],
            "reference_bf16_error_max": allowed["max"],
        }
        yield {
            **row,
            "weights": "resident",
            **self._speed(ResidentWeights(model, operators), operators, timed, flop_per_s, rounds),
        }
        if is_late():
            yield {**row, "weights": "streamed", "left_out": True}
            return
        source = StreamedWeights(model, operators)
        try:
            same = torch.equal(
                self._scores(source, operators, checked), self._nlls(model, row["contender"], Lane.BF16, checked)
            )
            speed = self._speed(source, operators, timed, flop_per_s, rounds)
            yield {**row, "passed": bool(close) and same, "same_bits_as_resident": same, "weights": "streamed", **speed}
        finally:
            source.close()

    def _nlls(self, model: RandomModel, backend: str, lane: Lane, batch: Batch) -> torch.Tensor:
        operators = self.resolve(backend, lane)
        return self._scores(ResidentWeights(model, operators), operators, batch)

    def _scores(self, source: WeightSource, operators: Operators, batch: Batch) -> torch.Tensor:
        return Engine(self.traits, source, operators).run(batch).nll_N

    def _speed(self, source: WeightSource, operators: Operators, batch: Batch, flop_per_s: float, rounds: int) -> Row:
        """Wall clock of whole batches, scores on the host included; one round warms up."""
        engine = Engine(self.traits, source, operators)
        taken = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            engine.run(batch)
            taken.append(time.perf_counter() - start)
        seconds = statistics.median(taken[1:])
        flop = required_flop(batch, model_shape(self.traits)).total
        num_tokens = len(batch.token_ids_T)
        return {
            "num_tokens": num_tokens,
            "num_scored_rows": len(batch.rows_N),
            "median_s": seconds,
            "spread": (max(taken[1:]) - min(taken[1:])) / seconds,
            "tok_per_s": num_tokens / seconds,
            "flop_per_s": flop / seconds,
            "share_of_matrix_rate": flop / seconds / flop_per_s,
        }
