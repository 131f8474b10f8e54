"""The transcripts of a run's second pass over its data, held against the first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from psyfast.data.records import Transcript
from psyfast.errors import DataError
from psyfast.rows import DIGEST_BYTES, transcript_digest


class CheckedTranscripts(Iterator[Transcript]):
    """Transcripts with their count, each held against the digest that the first pass over the data took of it."""

    def __init__(self, transcripts: Iterator[Transcript], digests: bytes) -> None:
        self._transcripts, self._digests = transcripts, digests
        self._position = 0

    def __next__(self) -> Transcript:
        start = self._position * DIGEST_BYTES
        expected = self._digests[start : start + DIGEST_BYTES]
        transcript = next(self._transcripts, None)
        if transcript is None and not expected:
            raise StopIteration
        if transcript is None or transcript_digest(transcript) != expected:
            where = "its end" if transcript is None else f"{transcript.source_file}, row {transcript.source_row}"
            raise DataError(
                f"{where}: the data changed while the run went on; bring back what it began with and --resume, or start anew"
            )
        self._position += 1
        return transcript

    def skip_to(self, position: int) -> int:
        """Pass over transcripts up to a position; returns their characters."""
        return sum(len(transcript.text) for transcript in islice(self, position - self._position))
