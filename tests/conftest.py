"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is loaded: threads that wait for work must not spin where several test processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest


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
