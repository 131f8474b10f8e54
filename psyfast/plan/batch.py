"""From requests to one batch of the engine, at once or request by request.

The planner is native (csrc/batch_plan.cc). Where psyfast._native is not built, as in a bare source tree on a GPU
machine, the reference in Python does the same, array for array, and slower.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Protocol

from psyfast.plan.records import Batch, Branch, Plan, Request, ScoredRuns, ScoredTokens
from psyfast.plan.reference import MAX_OPTION_COLUMNS, ReferenceBuilder

__all__ = [
    "MAX_OPTION_COLUMNS",
    "Batch",
    "BatchBuilder",
    "Branch",
    "Plan",
    "Request",
    "ScoredRuns",
    "ScoredTokens",
    "batch_builder",
    "plan_batch",
]

log = logging.getLogger(__name__)


class BatchBuilder(Protocol):
    """A batch that grows request by request and knows how large it is."""

    def __init__(self, *, share: bool = True) -> None: ...

    @property
    def num_requests(self) -> int:
        """Requests that were added."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens that the engine would compute, shared prefixes once."""
        ...

    @property
    def num_slots(self) -> int:
        """Page slots that the batch would take, shared pages once."""
        ...

    def add(self, requests: Sequence[Request], max_slots: int | None = None) -> int:
        """Add requests in order and return how many; the first that would pass max_slots is left out, and all after it.

        Raises RequestError for ids below 0 and for positions outside of what they count, and then adds none.
        """
        ...

    def finish(self) -> Plan:
        """The plan of what was added, with one batch."""
        ...


def batch_builder(*, share: bool = True) -> BatchBuilder:
    """An empty batch; share=False gives each request, and each branch with tokens of its own, all its tokens anew."""
    return _builder_type()(share=share)


def plan_batch(requests: Sequence[Request], *, share: bool = True) -> Plan:
    """Plan requests as one batch: a pure function of its arguments. Raises RequestError as `BatchBuilder.add` does."""
    builder = batch_builder(share=share)
    builder.add(requests)
    return builder.finish()


@cache
def _builder_type() -> type[BatchBuilder]:
    try:
        from psyfast.plan.native import NativeBuilder
    except ImportError as error:
        log.info("batches are planned in Python, which is slower and gives the same: %s", error)
        return ReferenceBuilder
    return NativeBuilder
