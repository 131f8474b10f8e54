"""The tables on disk, as CSV and Parquet, and as one JSON document."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import polars as pl

from psyfast.errors import RunError
from psyfast.metrics.compute import Metrics
from psyfast.store.atomic import whole_file

MAIN_TABLES = (
    "models",
    "experiments",
    "pairs",
    "types",
    "generations",
    "category_means",
    "persona",
    "template",
    "conditions",
    "equivalence",
    "choices",
    "baselines",
    "model_baselines",
    "intervals",
)
"""What the JSON document holds; the rest is in the folder."""


def require_usable(folder: Path) -> None:
    """RunError, before anything is computed, if the tables cannot go there."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; give -o a folder")
    if (folder / "manifest.json").exists():
        raise RunError(f"{folder}: is the folder of a run; give -o another one, such as {folder / 'metrics'}")


def write_tables(metrics: Metrics, folder: Path) -> tuple[Path, ...]:
    """Write NAME.csv and NAME.parquet of every table; returns the paths. Raises RunError where it cannot."""
    require_usable(folder)
    written = []
    for name, frame in metrics.tables.items():
        for suffix, write in ((".csv", _write_csv), (".parquet", _write_parquet)):
            path = folder / f"{name}{suffix}"
            with whole_file(path) as temporary:
                write(frame, temporary)
            written.append(path)
    return tuple(written)


def _write_csv(frame: pl.DataFrame, path: Path) -> None:
    frame.write_csv(path)


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    frame.write_parquet(path, compression="zstd")


def as_document(metrics: Metrics) -> dict[str, Any]:
    """The main tables as lists of objects, with what they were made from."""
    return {
        "runs": [str(run) for run in metrics.runs],
        "protocol": metrics.protocol,
        "lane": metrics.lane,
        "as_published": metrics.config.as_published,
        "group_by": metrics.config.group_by,
        "seed": metrics.config.seed,
        "notes": list(metrics.notes),
        "tables": {name: [_finite(row) for row in metrics.tables[name].to_dicts()] for name in MAIN_TABLES},
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: an NLL that is one becomes null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
