"""Triton's interpreter runs in a process of its own: TRITON_INTERPRET=1 must stand before a kernel module is imported.

TRITON_INTERPRET=1 python -m pytest tests/interpreted
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HOW = "runs in a process of its own: TRITON_INTERPRET=1 python -m pytest tests/interpreted"

if INTERPRETED:
    import exact_bfloat16

    exact_bfloat16.install()


def pytest_configure(config: pytest.Config) -> None:
    # tl.max of a row of NaN is NaN, as on a GPU; NumPy would have us know.
    config.addinivalue_line("filterwarnings", "ignore:All-NaN slice:RuntimeWarning")


class _LeftOut(pytest.Module):
    """A test file that is not imported, and says so."""

    def collect(self) -> list[pytest.Item]:
        # A process that has imported a kernel for the compiler cannot interpret it; `make test` runs these after the rest.
        pytest.skip(HOW, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return None if INTERPRETED else _LeftOut.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    import torch

    print("torch seed", torch.seed())  # shown when a test fails
