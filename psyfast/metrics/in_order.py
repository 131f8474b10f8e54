"""Work on several things at once, with the results in their order and few of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def in_order(work: Callable[[In], Out], items: Iterable[In], num_threads: int = 2) -> Iterator[Out]:
    """work(item) of every item, in order; `num_threads` are worked on while the caller uses the last one.

    Each item's result is its own, so that results do not depend on the number of threads.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        running: deque[Future[Out]] = deque()
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) > num_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()
