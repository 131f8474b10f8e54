"""What is scored: transcripts, as files for psyfast and as token ids with response spans for everybody else.

Kinds of cases: `plain` (all transcripts together), `lengths` (each alone, and a short one), `options` (one transcript,
without and with four options of two tokens at each response), `requests` (some of those options as requests of their
own), `pairs` (all responses of one transcript as requests of their own, against `one-pass`), `growth` (the transcripts' text one after the other, cut at ever more tokens).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from psyfast.data.encode import Encoded, Protocol, encode_many
from psyfast.data.records import Transcript
from psyfast.data.sample import write_sample
from psyfast.data.tokenizer import Tokenizer
from psyfast.data.transcripts import TranscriptReader

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "psych201"

REAL_SET = (
    ("guenther2022relational", 1),
    ("frey2017dfe", 0),
    ("guenther2023grammaticality", 0),
    ("nussenbaum2020twostep", 0),
    ("bavard2023functional", 1),
)
"""(study, row) of the transcripts that figures are given for: 25,899 tokens and 980 responses of SmolLM2 under `paper`."""

SHORT = ("thoma2025riskychoice", 0)
OPTION_SETS = (("12", "34", "56", "78"), ("qx", "zj", "kv", "wq"), ("AQ", "BX", "CJ", "DZ"))
"""Four options of two tokens each in most vocabularies; the first set that is so in the one at hand is taken."""

NUM_REQUESTED = 4
"""Responses whose options are also scored as requests of their own."""


@dataclass(frozen=True)
class Case:
    """Transcripts to be scored in one go.

    sequences: of each transcript its key, ids, and the half-open spans and ordinals of its scored responses.
    """

    name: str
    kind: str
    data: str
    protocol: str
    context_limit: int | None
    sequences: tuple[dict[str, Any], ...]

    @property
    def num_tokens(self) -> int:
        """Of the transcripts, once each."""
        return sum(len(sequence["ids"]) for sequence in self.sequences)

    @property
    def span_lengths(self) -> np.ndarray:
        """Tokens of each response, transcript after transcript."""
        return np.array([stop - start for sequence in self.sequences for start, stop in sequence["spans"]])


class CaseMaker:
    """Writes cases into a folder, encoded by one tokenizer under one protocol."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, max_positions: int, protocol: str, context_limit: int | None = None
    ) -> None:
        self._folder, self._tokenizer, self._max_positions = folder, tokenizer, max_positions
        self._protocol, self._context_limit = protocol, context_limit

    def plain(self, transcripts: Sequence[Transcript]) -> list[Case]:
        """All of them in one go."""
        return [self._case("plain", "plain", transcripts)]

    def lengths(self, transcripts: Sequence[Transcript]) -> list[Case]:
        """Each of them alone, the shortest first."""
        cases = [self._case(f"alone-{i}", "lengths", [one]) for i, one in enumerate(transcripts)]
        return sorted(cases, key=lambda case: case.num_tokens)

    def options(self, transcript: Transcript) -> list[Case]:
        """The transcript without and with options, and the options of some of its responses as requests."""
        without = self._case("without-options", "options", [transcript])
        for option_set in OPTION_SETS:
            with_options = replace(transcript, options=(option_set,) * transcript.num_responses)
            path = self._write("with-options", [with_options])
            (encoded,) = self._encode(path, self._protocol, self._context_limit)
            scored = {response.response_idx for response in encoded.responses if response.is_scored}
            lengths = {(option.score_stop - option.score_start) for option in encoded.options}
            if lengths == {2} and len(encoded.options) == len(option_set) * len(scored):
                case = replace(without, name="with-options", data=str(path))
                return [without, case, self._requests(without, encoded)]
        raise SystemExit(f"no set of OPTION_SETS has options of two tokens in this vocabulary: {OPTION_SETS}")

    def _requests(self, case: Case, encoded: Encoded) -> Case:
        """Of some responses, evenly spread, every option as a sequence of its own: what came before it, and itself."""
        response_idxs = sorted({option.response_idx for option in encoded.options})
        places = np.linspace(0, len(response_idxs) - 1, 2 * NUM_REQUESTED + 1).astype(int)[1::2]
        chosen = {response_idxs[place] for place in places}
        sequences = [
            {
                "key": [*case.sequences[0]["key"]],
                "ids": [*encoded.ids[: option.branch_start].tolist(), *option.ids.tolist()],
                "spans": [[option.score_start, option.score_stop]],
                "response_idx": [option.response_idx],
            }
            for option in encoded.options
            if option.response_idx in chosen
        ]
        return replace(case, name="requests", kind="requests", sequences=tuple(sequences))

    def pairs(self, transcript: Transcript) -> list[Case]:
        """The transcript in one pass, and every response of it as a request: what came before it, and itself."""
        one_pass = self._case("one-pass", "one-pass", [transcript])
        return [one_pass, replace(one_pass, name="pairs", kind="pairs")]

    def growth(self, transcripts: Sequence[Transcript], lengths: Sequence[int]) -> list[Case]:
        """One text cut at ends of lines below each number of tokens; under `exact`, for `paper` cuts by characters."""
        text = "\n".join(transcript.text for transcript in transcripts)
        while len(self._tokenizer.encode(text).ids) < max(lengths):
            text += "\n" + text
        offsets = self._tokenizer.encode(text).offsets
        cases = []
        for length in lengths:
            cut = text.rindex("\n", 0, int(offsets[length - 1][1])) + 1
            grown = replace(transcripts[0], text=text[:cut], options=None, participant=f"grown to {length}")
            cases.append(self._case(f"grown-{length}", "growth", [grown], Protocol.EXACT.value, max(lengths)))
        return cases

    def _case(
        self,
        name: str,
        kind: str,
        transcripts: Sequence[Transcript],
        protocol: str | None = None,
        context_limit: int | None = None,
    ) -> Case:
        protocol, context_limit = protocol or self._protocol, context_limit or self._context_limit
        path = self._write(name, [replace(transcript, options=None) for transcript in transcripts])
        encoded = self._encode(path, protocol, context_limit)
        sequences = [
            _sequence(transcript, one) for transcript, one in zip(TranscriptReader([path]), encoded, strict=True)
        ]
        sequences = [sequence for sequence in sequences if sequence["spans"]]
        if not sequences:
            raise SystemExit(f"case {name}: under --protocol {protocol} none of its responses is scored")
        return Case(name, kind, str(path), protocol, context_limit, tuple(sequences))

    def _encode(self, path: Path, protocol: str, context_limit: int | None) -> list[Encoded]:
        reader, limits = (
            TranscriptReader([path]),
            {"context_limit": context_limit, "max_positions": self._max_positions},
        )
        return list(encode_many(reader, self._tokenizer, Protocol(protocol), **limits))

    def _write(self, name: str, transcripts: Sequence[Transcript]) -> Path:
        path = self._folder / f"{name}.jsonl"
        with path.open("w", encoding="utf-8") as stream:
            for one in transcripts:
                row = {"study": one.study, "experiment": one.experiment, "participant": one.participant}
                row |= {"text": one.text} | ({"options": one.options} if one.options else {})
                stream.write(json.dumps(row) + "\n")
        return path


def _sequence(transcript: Transcript, encoded: Encoded) -> dict[str, Any]:
    scored = [response for response in encoded.responses if response.is_scored]
    return {
        "key": list(transcript.key),
        "ids": encoded.ids.tolist(),
        "spans": [[response.token_start, response.token_stop] for response in scored],
        "response_idx": [response.response_idx for response in scored],
    }


def read_transcripts(data: Sequence[str], limit: int | None, work: Path) -> tuple[list[Transcript], str]:
    """DATA, else the real set, else the synthetic sample; and what that is, for the tables."""
    if data:
        return list(islice(TranscriptReader(list(data)), limit)), ", ".join(data)
    if SHARED.is_dir():
        names = ", ".join(f"{study}[{row}]" for study, row in REAL_SET[:limit])
        return [real_transcript(*place) for place in REAL_SET[:limit]], names
    write_sample(work / "sample")
    return list(islice(TranscriptReader([work / "sample"]), limit)), "the synthetic sample"


def short_transcripts(transcripts: Sequence[Transcript]) -> Iterator[Transcript]:
    """A real transcript of 628 tokens, where the real ones are at hand and not among those already."""
    if SHARED.is_dir() and transcripts[0].study == REAL_SET[0][0]:
        yield real_transcript(*SHORT)


def real_transcript(study: str, row: int) -> Transcript:
    """A row of the shared data, as a study's folder names it."""
    for transcript in TranscriptReader([SHARED / study / "prompts.jsonl"]):
        if transcript.source_row == row:
            return transcript
    raise SystemExit(f"{SHARED / study / 'prompts.jsonl'}: has no row {row}")
