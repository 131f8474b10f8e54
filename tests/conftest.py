"""Fixtures that more than one test file uses, and how tests are run side by side."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MOST_WORKERS = 8
WORKER_BYTES = 2_500_000_000

# Before torch is loaded: threads that wait for work must not spin where several test processes share the cores. Each has
# two threads at least, so that what depends on there being several is seen.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if num_workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(2, CORES // int(num_workers))))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes for `-n auto`: one a core that this one may use, as far as memory goes; 0, this one alone, for one."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    workers = min(CORES, MOST_WORKERS, memory // WORKER_BYTES)
    return workers if workers > 1 else 0


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real transcripts and reference values beside the repository; its tests are skipped without it.

    With PSYFAST_REQUIRE_SHARED=1 its absence is a failure: the gate must not pass by skipping.
    """
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        if os.environ.get("PSYFAST_REQUIRE_SHARED") == "1":
            pytest.fail(f"PSYFAST_REQUIRE_SHARED=1, but there is no folder {folder}")
        # Real participants' data, not ours to publish: whoever has them gets these tests, everyone else a visible skip.
        pytest.skip(f"needs the folder {folder}, which does not come with the repository")
    return folder
