"""Windows: how much is planned, run and written together. A window is one batch of the engine and one part of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

DEFAULT_WINDOW_SLOTS = 16_384
MIN_WINDOW_SLOTS = 1_024
MEMORY_SHARE = 0.5

Item = TypeVar("Item")


def window_slots(bytes_a_slot: int, available_bytes: int) -> int:
    """Page slots a window may take: the default, or less where half of the free memory holds no more."""
    affordable = int(available_bytes * MEMORY_SHARE) // bytes_a_slot
    return max(MIN_WINDOW_SLOTS, min(DEFAULT_WINDOW_SLOTS, affordable))


def windows(items: Iterable[Item], cost: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Consecutive items whose costs add up to at most `budget`; an item that costs more stands alone."""
    window: list[Item] = []
    total = 0
    for item in items:
        item_cost = cost(item)
        if window and total + item_cost > budget:
            yield window
            window, total = [], 0
        window.append(item)
        total += item_cost
    if window:
        yield window
