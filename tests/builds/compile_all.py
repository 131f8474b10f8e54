"""Compiles all builds on every core, and says how long each took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any


def compile_all(compiled: Callable[[Any], Any], jobs: Sequence[Any]) -> list[tuple[Any, float]]:
    """(result, seconds) of each job, in their order."""
    # Fresh processes: a fork of one that has loaded torch would carry its threads' locks along.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(partial(_timed, compiled), jobs))


def _timed(compiled: Callable[[Any], Any], job: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return compiled(job), time.perf_counter() - start
