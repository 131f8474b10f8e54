"""Windows: how much is planned, run and written together, one part of a run.

A window takes items while the page slots of their forest stay within a budget, so what they share counts once: many
requests that are prefixes of one another are one window. Where it is cut depends on the order of the items, the budget
and sharing, and on nothing else: a resumed run cuts the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from psyfast.plan.batch import batch_builder
from psyfast.plan.records import Plan, Request
from psyfast.plan.split import plan_unshared

DEFAULT_WINDOW_SLOTS = 16_384
MIN_WINDOW_SLOTS = 1_024

Item = TypeVar("Item")


class Window(Generic[Item]):
    """Consecutive items and the batch that grows with them."""

    def __init__(self, budget: int, *, share: bool = True) -> None:
        self.items: list[Item] = []
        self._budget, self._share = budget, share
        self._builder = batch_builder(share=share)
        self._first: Request | None = None

    def add(self, item: Item, request: Request) -> bool:
        """Take an item in, unless the window has some and would pass its budget; an item that alone does stands alone."""
        if not self._builder.add([request], self._budget if self.items else None):
            return False
        self.items.append(item)
        if self._first is None:
            self._first = request
        return True

    def plan(self) -> Plan:
        """The plan of its items' requests: one batch within the budget, or what a lone item needs beyond it."""
        if self._first is not None and not self._share and self._builder.num_slots > self._budget:
            return plan_unshared(self._first, self._budget)
        return self._builder.finish()


def windows(
    items: Iterable[Item], request_of: Callable[[Item], Request], budget: int, *, share: bool = True
) -> Iterator[Window[Item]]:
    """Cut items into windows of at most `budget` page slots, all items in their order. Raises RequestError."""
    window: Window[Item] = Window(budget, share=share)
    for item in items:
        request = request_of(item)
        if not window.add(item, request):
            yield window
            window = Window(budget, share=share)
            window.add(item, request)
    if window.items:
        yield window
