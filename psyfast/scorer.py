"""Log-likelihoods of continuations, as evaluation harnesses ask for them: (context, continuation) pairs in, sums out.

import psyfast

with psyfast.Scorer("smollm2-135m-instruct") as scorer:
    scorer.loglikelihoods([("You press <<", "J"), ("You press <<", "F")])

Pairs that begin alike are computed once, in whatever order they come; a pair's bits depend on itself alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from psyfast.config import ScoreConfig
from psyfast.data.tokenizer import Tokenizer
from psyfast.engine import Engine
from psyfast.errors import UsageError
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.model.load.tokenizer import load_tokenizer
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.pages import PAGE_SLOTS
from psyfast.plan.records import Request
from psyfast.plan.windows import Window, windows
from psyfast.process_memory import planned_memory
from psyfast.rows import EntryScores

Tokens = str | Sequence[int] | NDArray[np.integer[Any]]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Loglikelihood:
    """A continuation under its context, in nats. NaN where the model's logits hold a NaN or an infinity.

    total: Σ ln p of its tokens. is_greedy: whether each of them is the model's first choice. token_logprobs: ln p of
    each, fp64. token_ids: the tokens that were scored.
    """

    total: float
    is_greedy: bool
    token_logprobs: NDArray[np.float64]
    token_ids: Int64Array


@dataclass(frozen=True)
class _Pair:
    place: int  # among the pairs as they came
    request: Request


class Scorer:
    """A model kept in memory (or streamed through it) for many calls; close it, or use it as a context manager."""

    def __init__(self, model: str, *, lane: str = "bf16", **settings: Any) -> None:
        """Load a model: an alias, a Hugging Face folder, a `.gguf` file or a hub id.

        settings: fields of `psyfast.config.ScoreConfig` that concern a model and how it is run (a wrong name's error
        lists them). Raises a PsyfastError for what the caller can mend.
        """
        allowed = set(_SETTINGS)
        if unknown := sorted(set(settings) - allowed):
            raise UsageError(f"Scorer: got {', '.join(unknown)}, expected settings among {', '.join(_SETTINGS)}")
        self.config = ScoreConfig(models=(model,), sources=("<memory>",), lane=lane, **settings)
        located = locate(model, self.config.revision)
        operators = resolve(
            self.config.backend,
            self.config.device,
            Lane(lane),
            isa=self.config.isa,
            join_segments=self.config.join_segments,
        )
        traits, files = open_model(located)
        self.tokenizer = Tokenizer(load_tokenizer(located))
        with self._threads():
            self._memory = planned_memory(self.config, operators, traits, files, window_slots=self.config.window_slots)
            streamed = self._memory.weights == "streamed"
            self.model = load_model(located, operators, streamed=streamed, read_ahead=self._memory.read_ahead)
            self._to_close = ExitStack()
            self._to_close.callback(self.model.weights.close)
            self._engine = Engine(self.model.traits, self.model.weights, operators, sparse=self.config.sparse)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what reads weights in the background."""
        self._to_close.close()

    def loglikelihoods(self, pairs: Iterable[tuple[Tokens, Tokens]]) -> list[Loglikelihood]:
        """One result a pair (context, continuation), in their order; each side a text or token ids, both alike.

        Texts are tokenised together, with the tokenizer's own special tokens before them; a continuation's tokens are
        those that overlap its characters, so a token across the border counts. Ids are taken as they are. Raises
        UsageError naming the first pair that cannot be scored, before any is.
        """
        requests = [self._request(place, pair) for place, pair in enumerate(pairs)]
        # Pairs that begin alike come to stand side by side: in one window, they share what they begin with.
        order = sorted(range(len(requests)), key=lambda place: requests[place].ids.astype(">u4").tobytes())
        found: list[Loglikelihood | None] = [None] * len(requests)
        items = (_Pair(place, requests[place]) for place in order)
        with self._threads():
            cut = windows(items, lambda pair: (pair.request,), self._memory.window_slots, share=self.config.share)
            for window in cut:
                for pair, result in self._scored(window):
                    found[pair.place] = result
        return [result for result in found if result is not None]

    def _scored(self, window: Window[_Pair]) -> Iterator[tuple[_Pair, Loglikelihood]]:
        plan = window.plan()
        slots = max(batch.pages.num_pages for batch in plan.batches) * PAGE_SLOTS
        if slots > self._memory.max_slots:
            raise UsageError(
                f"pair {window.items[0].place}: takes {slots:,} tokens at once, and {self._memory.max_slots:,} fit into "
                f"{self._memory.limit_bytes:,} bytes of memory; give memory_limit={self._memory.limit_for(slots)} or more"
            )
        entries = EntryScores.joined(
            [EntryScores.of(self._engine.run(batch), batch.target_N) for batch in plan.batches]
        )
        for pair, tokens in zip(window.items, plan.requests, strict=True):
            ids = pair.request.ids[pair.request.scored_positions].astype(np.int64)
            logprobs = -entries.token_nlls(tokens)
            is_greedy = bool((entries.argmax_N[tokens.entry] == ids).all())
            yield pair, Loglikelihood(float(logprobs.sum()), is_greedy, logprobs, ids)

    def _request(self, place: int, pair: tuple[Tokens, Tokens]) -> Request:
        if isinstance(pair, str) or len(pair) != 2:
            raise UsageError(f"pair {place}: got {pair!r:.60}, expected (context, continuation)")
        context, continuation = pair
        if isinstance(context, str) != isinstance(continuation, str):
            raise UsageError(
                f"pair {place}: one side is a text and the other is not; give two texts or two lists of ids"
            )
        if isinstance(context, str) and isinstance(continuation, str):
            ids, start = self._encoded(context, continuation)
        else:
            parts = [
                self._checked(place, name, side)
                for name, side in (("context", context), ("continuation", continuation))
            ]
            ids, start = np.concatenate(parts), len(parts[0])
        if start == len(ids):
            raise UsageError(f"pair {place}: the continuation is empty; give at least one token to score")
        if start == 0:
            raise UsageError(
                f"pair {place}: the context is empty, and nothing predicts a first token; begin it with a token, such as "
                "the tokenizer's beginning of text"
            )
        limit = self.config.context_limit or self.model.traits.max_positions
        if len(ids) - 1 > limit:
            raise UsageError(
                f"pair {place}: needs {len(ids) - 1:,} positions, and the limit is {limit:,}; cut its context, or give "
                "context_limit"
            )
        return Request(ids, np.arange(start, len(ids)))

    def _encoded(self, context: str, continuation: str) -> tuple[Int64Array, int]:
        text = context + continuation
        encoding = self.tokenizer.encode(text)
        start, stop = encoding.overlapping(len(context), len(text))
        return encoding.ids[:stop].astype(np.int64), start

    def _checked(self, place: int, name: str, side: Any) -> Int64Array:
        ids = np.asarray(side)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError(f"pair {place}: the {name} is {side!r:.60}, expected a text or a list of token ids")
        vocab_size = self.model.traits.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            wrong = next(int(i) for i in ids if not 0 <= i < vocab_size)
            raise UsageError(
                f"pair {place}: the {name} holds the id {wrong}, and the model has {vocab_size} tokens; use its tokenizer"
            )
        return ids.astype(np.int64)

    @contextmanager
    def _threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


_SETTINGS = (
    "backend",
    "context_limit",
    "device",
    "isa",
    "join_segments",
    "memory_limit",
    "revision",
    "share",
    "sparse",
    "threads",
    "weights",
    "window_slots",
)
