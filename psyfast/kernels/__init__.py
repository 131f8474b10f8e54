"""Device kernels (Triton, CUDA): the source tree's top-level kernels/ folder, under a name of our own.

A top-level package `kernels` would belong to another project, so the folder has no __init__.py and is found from here.
"""

from __future__ import annotations

from pathlib import Path

_SOURCE_TREE = Path(__file__).resolve().parents[2] / "kernels"

if _SOURCE_TREE.is_dir():
    __path__ = [*__path__, str(_SOURCE_TREE)]
