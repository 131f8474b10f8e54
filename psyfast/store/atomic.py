"""Files that are either whole or not there: written under a temporary name, synced, renamed, the folder synced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psyfast.errors import RunError

TEMPORARY_PREFIX = ".unfinished-"
TEMPORARY_SUFFIX = ".tmp"  # so that no pattern for finished files finds it


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it becomes `path`, on any failure it is removed."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error}); free space or check permissions, then --resume"
        ) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
