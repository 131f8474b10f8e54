"""Device kernels (Triton, CUDA): the source tree's top-level kernels/ folder, under a name of our own.

A top-level package `kernels` would belong to another project, so the folder has no __init__.py and is found from here.
"""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]

# Only in a source tree of ours: beside an installed package, a folder `kernels` is somebody else's.
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "csrc").is_dir():
    __path__ = [*__path__, str(_ROOT / "kernels")]
