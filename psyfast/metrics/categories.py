"""The category of each experiment, from a CSV that the user names."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psyfast.errors import DataError

UNCATEGORISED = "no category"
_NOT_CATEGORIES = ("experiment", "study", "dataset", "category")


@dataclass(frozen=True)
class Categories:
    """Categories in the file's order, and those of each experiment (several are possible)."""

    names: tuple[str, ...]
    by_experiment: Mapping[str, tuple[str, ...]]

    def of(self, experiment: str) -> tuple[str, ...]:
        """An experiment's categories; (UNCATEGORISED,) where the file gives none.

        A name that the file lacks is looked up without its underscores (PROTOCOL 5: the study's own file and folders
        differ in one).
        """
        for name in (_normal(experiment), _normal(experiment).replace("_", "")):
            if found := self.by_experiment.get(name):
                return found
        return (UNCATEGORISED,)

    def table(self, experiments: Iterable[str]) -> list[tuple[str, str]]:
        """(experiment, category) of these experiments, one row a category."""
        return [(experiment, category) for experiment in experiments for category in self.of(experiment)]


NO_CATEGORIES = Categories((), {})


def read_categories(path: Path) -> Categories:
    """A CSV with a column `experiment` (or `study`) and either one column `category`, or a column of 0 and 1 a category.

    Raises DataError naming the file and what cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a CSV of categories ({error})") from error
    header = [name for name in rows[0] if name is not None] if rows else []
    key = next((name for name in ("experiment", "study") if name in header), None)
    columns = [name for name in header if name not in _NOT_CATEGORIES]
    if key is None or not ("category" in header or columns):
        raise DataError(
            f"{path}: has the columns {', '.join(map(str, header)) or 'none'}, expected 'experiment' and either "
            "'category' or a column of 0 and 1 for each category"
        )
    found: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows, 2):
        if None in row:
            raise DataError(f"{path}, line {number}: has more cells than the header; quote names that hold commas")
        name = _normal(row[key] or "")
        if name in found:
            raise DataError(f"{path}, line {number}: '{name}' stands there twice; keep one line for each experiment")
        found[name] = _of_row(row, columns, f"{path}, line {number}")
    names = tuple(columns) if "category" not in header else tuple(dict.fromkeys(c for cs in found.values() for c in cs))
    return Categories(names, found)


def _of_row(row: Mapping[str | None, str | None], columns: Sequence[str], where: str) -> tuple[str, ...]:
    if "category" in row:
        return tuple(part.strip() for part in (row["category"] or "").split(";") if part.strip())
    marks = {name: (row[name] or "0").strip() for name in columns}
    for name, mark in marks.items():
        if mark not in ("0", "1"):
            raise DataError(f"{where}: column '{name}' holds {mark!r}, expected 0 or 1")
    return tuple(name for name, mark in marks.items() if mark == "1")


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())
