"""Windows: how much is planned, run and written together, one part of a run.

A window takes items while the page slots of their forest stay within a budget, so what they share counts once: many
requests that are prefixes of one another are one window. Where it is cut depends on the order of the items, their
requests, the budget and sharing, and on nothing else: a resumed run cuts the same.

An item that alone passes the budget is a window of its own. Its requests are then run in several batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from psyfast.plan.batch import BatchBuilder, batch_builder
from psyfast.plan.join import join_plans
from psyfast.plan.records import Plan, Request
from psyfast.plan.split import plan_unshared

DEFAULT_WINDOW_SLOTS = 16_384
MIN_WINDOW_SLOTS = 1_024
OFFERED = 32
"""Requests offered to a batch at a time."""

Item = TypeVar("Item")


class Window(Generic[Item]):
    """Consecutive items and the batches that grow with them; more than one only for a lone large item."""

    def __init__(self, budget: int, *, share: bool = True) -> None:
        self.items: list[Item] = []
        self._budget, self._share = budget, share
        self._builders: list[BatchBuilder] = [batch_builder(share=share)]
        self._requests: list[list[Request]] = [[]]  # of each builder

    def add(self, item: Item, requests: Sequence[Request]) -> bool:
        """Take an item in, unless the window has some and would pass its budget; an item that alone does stands alone."""
        if not self.items:
            self._fill(requests)
        elif len(self._builders) > 1 or not self._fits(requests):
            return False
        self.items.append(item)
        return True

    @property
    def requests(self) -> tuple[tuple[Request, ...], ...]:
        """The requests of each batch, in the order of their items."""
        return tuple(map(tuple, self._requests))

    def plan(self) -> Plan:
        """The plan of its items' requests, in their order; no batch where there are none."""
        return join_plans(
            [
                self._plan_one(builder, requests)
                for builder, requests in zip(self._builders, self._requests, strict=True)
                if requests
            ]
        )

    def _plan_one(self, builder: BatchBuilder, requests: Sequence[Request]) -> Plan:
        if len(requests) == 1 and not self._share and builder.num_slots > self._budget:
            return plan_unshared(requests[0], self._budget)
        return builder.finish()

    def _fits(self, requests: Sequence[Request]) -> bool:
        num_added = _add_within(self._builders[0], requests, self._budget)
        if num_added == len(requests):
            self._requests[0] += requests
            return True
        if num_added:  # a part of the item was let in: without it again
            self._builders[0] = batch_builder(share=self._share)
            self._builders[0].add(self._requests[0])
        return False

    def _fill(self, requests: Sequence[Request]) -> None:
        """As many batches as a first item takes; a request that alone passes the budget has one to itself."""
        start = 0
        while start < len(requests):
            if self._requests[-1]:
                self._builders.append(batch_builder(share=self._share))
                self._requests.append([])
            builder, stop = self._builders[-1], start + 1
            builder.add(requests[start:stop])
            stop += _add_within(builder, requests[stop:], self._budget)
            self._requests[-1] += requests[start:stop]
            start = stop


def _add_within(builder: BatchBuilder, requests: Sequence[Request], budget: int) -> int:
    """Add requests while the batch stays within the budget; returns how many.

    A builder copies what it is offered, so thousands of requests of one item are not offered at once, again for every batch.
    """
    num_added = 0
    for start in range(0, len(requests), OFFERED):
        chunk = requests[start : start + OFFERED]
        num_fitting = builder.add(chunk, budget)
        num_added += num_fitting
        if num_fitting < len(chunk):
            break
    return num_added


def windows(
    items: Iterable[Item], requests_of: Callable[[Item], Sequence[Request]], budget: int, *, share: bool = True
) -> Iterator[Window[Item]]:
    """Cut items into windows of at most `budget` page slots, all items in their order. Raises RequestError."""
    window: Window[Item] = Window(budget, share=share)
    for item in items:
        requests = requests_of(item)
        if not window.add(item, requests):
            yield window
            window = Window(budget, share=share)
            window.add(item, requests)
    if window.items:
        yield window
