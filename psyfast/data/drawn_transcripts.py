"""Transcripts in the order in which their participants are drawn, kept on disk: data that memory does not hold.

A file of transcripts can be read from its start only, and a drawing jumps: so they are copied, packed, into a temporary file
that goes when it is closed.
"""

from __future__ import annotations

import pickle
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from psyfast.data.drawing_order import drawn
from psyfast.data.records import Transcript
from psyfast.errors import RunError

PACKING = 1  # of zlib: texts become a quarter, at some hundred MB/s


class DrawnTranscripts:
    """Transcripts with a marked response, each in its place of the drawing. To be closed (a context manager).

    studies: in the order of the data. sizes: participants of each. study_of: by place, the index of its study. num_chars: by
    place. num_without_responses: transcripts that were left out.
    """

    def __init__(self, transcripts: Iterable[Transcript], folder: Path, seed: int) -> None:
        """Draw. folder: on the disk that takes the copy. Raises RunError where it does not."""
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as this object
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self.num_without_responses = 0
        self._folder = folder
        self._extents: list[tuple[int, int]] = []
        names: list[str] = []
        chars: list[int] = []

        def kept() -> Iterator[tuple[str, str, str]]:
            for transcript in transcripts:
                if not transcript.num_responses:
                    self.num_without_responses += 1
                    continue
                self._write(transcript)
                names.append(transcript.study)
                chars.append(len(transcript.text))
                yield transcript.key

        order = drawn(kept(), seed)
        try:
            self._file.flush()
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self.studies = tuple(dict.fromkeys(names))
        study_idx = {study: idx for idx, study in enumerate(self.studies)}
        self.study_of = [study_idx[names[i]] for i in order]
        self.sizes = [0] * len(self.studies)
        for study in self.study_of:
            self.sizes[study] += 1
        self.num_chars = [chars[i] for i in order]
        self._extents = [self._extents[i] for i in order]

    def _write(self, transcript: Transcript) -> None:
        packed = zlib.compress(pickle.dumps(transcript), PACKING)
        self._extents.append((self._file.tell(), len(packed)))
        try:
            self._file.write(packed)
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def __len__(self) -> int:
        return len(self._extents)

    def between(self, start: int, stop: int) -> Iterator[Transcript]:
        """The transcripts at places start to stop − 1."""
        for offset, size in self._extents[start:stop]:
            self._file.seek(offset)
            transcript: Transcript = pickle.loads(zlib.decompress(self._file.read(size)))
            yield transcript

    def first(self, num: int) -> FirstDrawn:
        """The first `num`, to be iterated any number of times."""
        return FirstDrawn(self, num)

    def __enter__(self) -> DrawnTranscripts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class FirstDrawn(Iterable[Transcript]):
    """The first transcripts of a drawing."""

    def __init__(self, transcripts: DrawnTranscripts, num: int) -> None:
        self._transcripts, self._num = transcripts, num

    def __iter__(self) -> Iterator[Transcript]:
        return self._transcripts.between(0, self._num)


def _cannot_write(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder}: cannot hold the transcripts while they are drawn ({error}); free space, then --resume")
