"""Modules that tests build for themselves, with CMake, into build/."""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]


@cache
def built_module(name: str, folder: str, *options: str) -> ModuleType:
    """The target `name` of a build with these options in build/`folder`-PYTHON: built once, then incrementally."""
    build_dir = ROOT / "build" / f"{folder}-{sys.implementation.cache_tag}"
    failure = _build(name, build_dir, options)
    assert not failure, failure
    (path,) = build_dir.glob(f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _build(target: str, build_dir: Path, options: tuple[str, ...]) -> str:
    """What went wrong, or nothing. Of processes that test side by side, one builds and the others wait for it."""
    configure = ["cmake", "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja", *options]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    build_dir.mkdir(parents=True, exist_ok=True)
    with (build_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, ["cmake", "--build", str(build_dir), "--target", target]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                return done.stdout[-4000:] + done.stderr[-4000:]
    return ""
