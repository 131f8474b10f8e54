"""The reader: sources in, Transcripts out, one at a time; what was read, mended and skipped in its report."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from psyfast.data.choice_sets import OptionSource, with_choice_sets
from psyfast.data.fields import Warnings, check_transcript, read_transcript, study_of
from psyfast.data.records import Transcript
from psyfast.data.row_tables import MemorySource
from psyfast.data.rows import FieldError, FileRecord, RawRow, ReadyRow, Row, RowError, RowSource
from psyfast.data.sources import resolve_sources
from psyfast.data.subset import TestSplit, find_test_split
from psyfast.errors import DataError, UsageError


@dataclass(frozen=True)
class ReadOptions:
    """studies: only these (none: all). limit: number of transcripts in all. on_bad_row: a row that cannot be read ends
    the reading, or is skipped and listed. revision: of data sets on the Hub. options: where choice sets come from.
    subset: `test` for the study's evaluation split of all that is read, drawn with the seed where the data do not say.
    """

    studies: tuple[str, ...] = ()
    limit: int | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    revision: str | None = None
    options: OptionSource = "data"
    subset: Literal["test"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}, expected 1 or more transcripts")
        if self.on_bad_row not in ("error", "skip"):
            raise UsageError(f"on_bad_row is '{self.on_bad_row}', expected 'error' or 'skip'")
        if self.options not in ("data", "auto") and not callable(self.options):
            raise UsageError(f"options is {self.options!r}, expected 'data', 'auto' or a function of a transcript")
        if self.subset not in (None, "test"):
            raise UsageError(f"subset is {self.subset!r}, expected 'test' or None")
        if not isinstance(self.studies, tuple):
            raise UsageError(f"studies is {self.studies!r}, expected a tuple of names")


@dataclass(frozen=True)
class SkippedRow:
    """A row passed over under on_bad_row="skip": file, line (1-based), field ("" for the row itself), reason."""

    file: str
    line: int
    field: str
    reason: str


@dataclass
class ReadReport:
    """What one iteration has read so far.

    warnings: by kind (fields.WARNING_KINDS), of the transcripts handed out. passed_over: data files in the folders that
    are no prompts.*. num_filtered: rows of studies that were not asked for.
    """

    files: list[FileRecord] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)
    warnings: Warnings = field(default_factory=Counter)
    passed_over: tuple[str, ...] = ()
    num_transcripts: int = 0
    num_filtered: int = 0
    num_outside_subset: int = 0
    too_small: tuple[str, ...] = ()

    @property
    def rows_read(self) -> int:
        """Rows looked at, in all files."""
        return sum(file.num_rows_read for file in self.files)


class _Keys:
    """(study, experiment, participant) of what was handed out, as 16-byte digests with the place of each."""

    def __init__(self) -> None:
        self._place_of: dict[bytes, int] = {}
        self._files: dict[str, int] = {}

    def refuse_second(self, transcript: Transcript, row: RawRow | ReadyRow) -> None:
        """Note a transcript's key. Raises FieldError naming the first place where the key was seen before."""
        key = json.dumps(transcript.key).encode()
        file_idx = self._files.setdefault(f"{row.file}, {row.unit}", len(self._files))
        place = file_idx << 48 | row.line
        first = self._place_of.setdefault(hashlib.blake2b(key, digest_size=16).digest(), place)
        if first != place:
            file = list(self._files)[first >> 48]
            names = ", ".join(f"{name} '{value}'" for name, value in zip(_KEY_FIELDS, transcript.key, strict=True))
            where = f"{file} {first & ((1 << 48) - 1)}"
            reason = f"{names} was read before from {where}; give each session a participant or experiment of its own"
            raise FieldError("participant", reason)


_KEY_FIELDS = ("study", "experiment", "participant")


class TranscriptReader:
    """Transcripts of sources in the order given; every iteration starts afresh and has a new `report`.

    A source is a path (FILE_SUFFIXES, a folder of studies, a saved data set), an `owner/name` on the Hugging Face Hub,
    or a RowSource. Memory holds a row or a parquet page, and 16-byte digests of the keys. Raises DataError for whatever
    cannot be read: at once where a source is not there, while iterating for the rest.
    """

    def __init__(
        self, sources: Sequence[str | Path | RowSource] | str | Path, options: ReadOptions | None = None
    ) -> None:
        self.options = options or ReadOptions()
        named = [sources] if isinstance(sources, (str, Path)) else list(sources)
        self._sources, self._passed_over = resolve_sources(named, self.options.revision)
        self.report = ReadReport(passed_over=self._passed_over)
        self._split: TestSplit | None = None
        if self.options.subset is not None:
            _refuse_split_sources([str(source) for source in named if isinstance(source, (str, Path))])

    def __iter__(self) -> Iterator[Transcript]:
        self.report = report = ReadReport(passed_over=self._passed_over)
        if self.options.studies and all(source.local for source in self._sources):
            self._look_up_studies()
        limit = self.options.limit
        seen_studies: set[str] = set()
        split = self._test_split()
        if split is not None:
            report.too_small = split.too_small
        for transcript in self._transcripts(report, seen_studies, split):
            yield transcript
            if report.num_transcripts == limit:
                return
        self._check_studies(seen_studies)
        if not report.num_transcripts:
            raise self._nothing_read(report)

    def _test_split(self) -> TestSplit | None:
        """The subset's participants, found once by reading everything; DataError where there are none."""
        if self.options.subset is not None and self._split is None:
            whole = ReadReport(passed_over=self._passed_over)
            found = find_test_split(self._transcripts(whole, set(), None), self.options.seed)
            if not found.keys:
                raise DataError(
                    f"{self._sources[0].name}: nobody is in the test subset of {whole.num_transcripts} transcripts: it takes a "
                    "tenth of each study's participants with a response, so of 10 or more, leaves out six studies, and of "
                    "Psych-101 takes its own test participants alone; leave out --subset"
                )
            self._split = found
        return self._split

    def _transcripts(self, report: ReadReport, seen_studies: set[str], split: TestSplit | None) -> Iterator[Transcript]:
        keys = _Keys()
        for source in self._sources:
            record = FileRecord(source.name)
            report.files.append(record)
            for row in source.rows(record):
                try:
                    transcript = self._read(row, report, keys, seen_studies)
                except RowError as error:
                    if self.options.on_bad_row == "error":
                        raise
                    report.skipped.append(SkippedRow(error.file, error.line, error.field, error.reason))
                    continue
                if transcript is None:
                    continue
                if split is not None and transcript not in split:
                    report.num_outside_subset += 1
                    continue
                report.num_transcripts += 1
                yield transcript

    def _read(self, row: Row, report: ReadReport, keys: _Keys, seen_studies: set[str]) -> Transcript | None:
        """The row's transcript, None where its study was not asked for. Raises RowError."""
        if isinstance(row, RowError):
            raise row
        try:
            study = row.transcript.study if isinstance(row, ReadyRow) else study_of(row)
            seen_studies.add(study)
            if self.options.studies and study not in self.options.studies:
                report.num_filtered += 1
                return None
            if isinstance(row, ReadyRow):
                transcript, warnings = row.transcript, check_transcript(row.transcript)
            else:
                transcript, warnings = read_transcript(row)
            keys.refuse_second(transcript, row)
            transcript = with_choice_sets(transcript, self.options.options)
        except FieldError as error:
            raise row.error(error.field, error.reason) from None
        report.warnings.update(warnings)
        return transcript

    def _look_up_studies(self) -> None:
        """Read ahead for the names asked for: a slip costs seconds then, not the scoring of what stands before it."""
        wanted, seen = set(self.options.studies), set[str]()
        for source in self._sources:
            for row in source.rows(FileRecord(source.name)):
                if isinstance(row, RowError):
                    continue
                try:
                    seen.add(row.transcript.study if isinstance(row, ReadyRow) else study_of(row))
                except FieldError:
                    continue  # reported where the rows are read in earnest
                if wanted <= seen:
                    return
        self._check_studies(seen)

    def _check_studies(self, seen: set[str]) -> None:
        for study in self.options.studies:
            if study not in seen:
                close = difflib.get_close_matches(study, sorted(seen), n=3, cutoff=0.5)
                names = list(dict.fromkeys([*close, *sorted(seen)]))
                shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
                raise DataError(f"study '{study}' does not occur in the sources; found: {shown or 'none'}")

    def _nothing_read(self, report: ReadReport) -> DataError:
        names = ", ".join(source.name for source in self._sources[:3]) + (" …" if len(self._sources) > 3 else "")
        first = f" (first: {report.skipped[0].file}, line {report.skipped[0].line})" if report.skipped else ""
        return DataError(
            f"{names}: no transcript was read: {report.rows_read} rows, of them {len(report.skipped)} skipped{first} "
            f"and {report.num_filtered} of other studies"
        )


def _refuse_split_sources(names: Sequence[str]) -> None:
    """UsageError for published data sets that hold the test subset and nothing else: it would be split once more."""
    for name in names:
        if Path(name).name.lower().endswith("-test"):
            raise UsageError(f"{name}: is the test subset already; leave out --subset")


def transcripts_from_rows(
    rows: Iterable[Mapping[str, Any] | Transcript],
    source_name: str = "<memory>",
    options: ReadOptions | None = None,
) -> TranscriptReader:
    """A reader of dicts (fields as in a file's rows) or Transcripts, under the same checks. Rows are counted from 1.

    Can be iterated again and again unless `rows` is an iterator itself.
    """
    return TranscriptReader([MemorySource(rows, source_name)], options)
