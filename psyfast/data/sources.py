"""What a source's name means: a file, a folder of studies, a saved data set, or a data set of the Hugging Face Hub.

    STUDIES/                    STUDY/                  FOLDER/
      study_a/prompts.jsonl       prompts.jsonl.zip       a.jsonl
      lab/study_b/prompts.jsonl                           b.parquet

Directly in the folder that was named, every file of a known suffix is read; below it, only `prompts.*`, because
contributors keep other tables beside theirs. Files of a known suffix that are not read are listed.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from psyfast.data.row_files import FILE_SUFFIXES, FileSource, file_stem, file_suffix
from psyfast.data.row_tables import DatasetSource
from psyfast.data.rows import RowSource
from psyfast.errors import DataError, UsageError

_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAVED_DATASET_FILES = ("dataset_info.json", "dataset_dict.json")


def resolve_sources(
    sources: Sequence[str | Path | RowSource], revision: str | None
) -> tuple[tuple[RowSource, ...], tuple[str, ...]]:
    """(the row sources in the order given, paths of the data files that are passed over).

    Raises DataError where a name leads nowhere or to nothing, or to the same file twice; UsageError for a `revision`
    without a data set of the Hub.
    """
    found: list[RowSource] = []
    passed_over: list[str] = []
    has_hub_dataset = False
    for source in sources:
        if not isinstance(source, (str, Path)):
            found.append(source)
        elif Path(source).exists():
            found.extend(_on_disk(Path(source), passed_over))
        elif _is_dataset_id(str(source)) and not _close_names(Path(source)):
            found.append(DatasetSource(str(source), revision=revision))
            has_hub_dataset = True
        else:
            raise _not_found(Path(source))
    if not found:
        raise DataError("no source was given; name a file, a folder of studies or a data set")
    if revision is not None and not has_hub_dataset:
        raise UsageError(
            f"revision '{revision}' is given but no source is a data set of the Hub (owner/name); leave it out"
        )
    _refuse_doubles(found)
    return tuple(found), tuple(passed_over)


def _is_dataset_id(name: str) -> bool:
    return _DATASET_ID.fullmatch(name) is not None and file_suffix(Path(name)) is None


def _on_disk(path: Path, passed_over: list[str]) -> list[RowSource]:
    if not path.is_dir():
        if file_suffix(path) is None:
            raise DataError(f"{path}: unknown suffix '{''.join(path.suffixes)}', expected one of {_accepted()}")
        return [FileSource(path)]
    if any((path / name).is_file() for name in _SAVED_DATASET_FILES):
        return [DatasetSource(str(path), folder=path)]
    files = [file for file in _sorted_files(path, {path.resolve()}) if file_suffix(file)]
    if not files:
        raise DataError(f"{path}: holds no transcripts, expected {_accepted()} in it, or STUDY/prompts.jsonl below it")
    wanted = [file for file in files if _is_wanted(file, path)]
    passed_over.extend(str(file) for file in files if not _is_wanted(file, path))
    if not wanted:
        raise DataError(f"{path}: holds no STUDY/prompts.jsonl, only {_some(passed_over)}; name the files themselves")
    _refuse_two_forms(wanted)
    return [FileSource(file) for file in wanted]


def _is_wanted(file: Path, top: Path) -> bool:
    return file.parent == top or file_stem(file).lower() == "prompts"


def _sorted_files(folder: Path, seen: set[Path]) -> Iterable[Path]:
    """Files below a folder, sorted by name, hidden ones aside. seen: folders on the way, so that no link is a loop."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_file():
            yield path
        elif entry.is_dir() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield from _sorted_files(path, seen)


def _refuse_two_forms(files: list[Path]) -> None:
    """prompts.jsonl beside prompts.jsonl.zip is the same study twice."""
    first_of: dict[tuple[Path, str], Path] = {}
    for file in files:
        first = first_of.setdefault((file.parent, file_stem(file)), file)
        if first is not file:
            raise DataError(
                f"{file.parent}: holds both {first.name} and {file.name}; keep one, or name it as the source"
            )


def _refuse_doubles(sources: Iterable[RowSource]) -> None:
    seen: dict[Path | str, str] = {}
    for source in sources:
        key = source.path.resolve() if isinstance(source, FileSource) else source.name
        if isinstance(source, (FileSource, DatasetSource)) and key in seen:
            raise DataError(f"{source.name}: was given twice (also as {seen[key]}); name each source once")
        seen[key] = source.name


def _not_found(path: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{path}: not found, and there is no folder {folder} either; check the path")
    close = _close_names(path)
    hint = f"did you mean {' or '.join(close)}?" if close else "check the path"
    return DataError(f"{path}: not found; {hint} (a data set of the Hugging Face Hub is named owner/name)")


def _close_names(path: Path) -> list[str]:
    """What lies in the folder of a path under a name like its own: data/pysch201 is a slip, and no data set."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)


def _accepted() -> str:
    return ", ".join(FILE_SUFFIXES)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
