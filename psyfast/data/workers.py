"""Work on transcripts and texts in several processes: in order, a bounded number at a time, no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from psyfast.data.tokenizer import Tokenizer
from psyfast.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")

LOOK_AHEAD = 4
"""Items in flight for each worker."""

_tokenizer: Tokenizer | None = None  # one a worker process, set once when it starts


def map_in_order(
    work: Callable[[Item, Tokenizer], Result], items: Iterable[Item], tokenizer: Tokenizer, num_workers: int
) -> Iterator[Result]:
    """`work(item, tokenizer)` of each item, in their order; the same for any number of workers.

    With num_workers=0 everything happens in this process. Otherwise `work` must be picklable. What `work` or the
    iterable raises is raised here, and the workers end with this generator, however it ends. RunError if one is killed.
    """
    if num_workers == 0:
        for item in items:
            yield work(item, tokenizer)
        return
    # Spawned and not forked: the parent has threads (torch, Rust), whose locks a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(tokenizer,))
    try:
        yield from _in_order(pool, work, iter(items), LOOK_AHEAD * num_workers)
    except BrokenProcessPool as error:
        raise RunError(
            f"one of {num_workers} tokenising processes ended before its work was done: out of memory (use fewer "
            "workers), or started by a script without `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, work: Callable[[Item, Tokenizer], Result], items: Iterator[Item], look_ahead: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    for item in islice(items, look_ahead):
        pending.append(pool.submit(_run, work, item))
    while pending:
        result = pending.popleft().result()
        for item in islice(items, 1):
            pending.append(pool.submit(_run, work, item))
        yield result


def _start_worker(tokenizer: Tokenizer) -> None:
    global _tokenizer  # noqa: PLW0603
    _tokenizer = tokenizer
    # Ctrl-C reaches the whole process group; the parent alone answers it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent dies, however it dies."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Callable[[Item, Tokenizer], Result], item: Item) -> Result:
    assert _tokenizer is not None
    return work(item, _tokenizer)
