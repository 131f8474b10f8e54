"""Between a transcript and the engine, both ways: encoded transcript → request, scores → rows of the results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psyfast.data.encode import Encoded, ResponseTokens
from psyfast.data.records import PERSONA_FIELDS, Transcript
from psyfast.data.responses import find_responses
from psyfast.ops.records import HeadScores
from psyfast.plan.records import Branch, Request, ScoredRuns, ScoredTokens


def request_of(encoded: Encoded) -> Request:
    """What the engine must compute for an encoded transcript."""
    spans = [(r.token_start, r.token_stop) for r in encoded.responses if r.token_start is not None]
    positions = [np.arange(start, stop) for start, stop in spans]
    return Request(
        ids=encoded.ids.astype(np.int64),
        scored_positions=np.unique(np.concatenate(positions)) if positions else np.zeros(0, np.int64),
        branches=tuple(
            Branch(option.branch_start, option.ids.astype(np.int64), option.score_start, option.score_stop)
            for option in encoded.options
        ),
    )


@dataclass(frozen=True)
class EntryScores:
    """The engine's scores as numpy arrays, looked up by entry and column. Sums over tokens are in fp64."""

    nll_N: NDArray[np.float64]
    argmax_N: NDArray[np.int64]
    rank_N: NDArray[np.int64]
    entropy_N: NDArray[np.float64]
    option_nll_NK: NDArray[np.float64]
    target_N: NDArray[np.int64]

    @classmethod
    def of(cls, scores: HeadScores, target_N: NDArray[np.int64]) -> EntryScores:
        """From what the engine returned for a batch with these targets."""
        return cls(
            nll_N=scores.nll_N.double().numpy(),
            argmax_N=scores.argmax_N.numpy(),
            rank_N=scores.rank_N.numpy(),
            entropy_N=scores.entropy_N.double().numpy(),
            option_nll_NK=scores.option_nll_NK.double().numpy(),
            target_N=target_N,
        )

    @classmethod
    def joined(cls, parts: Sequence[EntryScores]) -> EntryScores:
        """The scores of a plan's batches, entry after entry; a batch with fewer option columns gets NaN in the rest."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.option_nll_NK.shape[1] for part in parts)
        padded = [
            np.pad(part.option_nll_NK, ((0, 0), (0, width - part.option_nll_NK.shape[1])), constant_values=np.nan)
            for part in parts
        ]
        return cls(
            nll_N=np.concatenate([part.nll_N for part in parts]),
            argmax_N=np.concatenate([part.argmax_N for part in parts]),
            rank_N=np.concatenate([part.rank_N for part in parts]),
            entropy_N=np.concatenate([part.entropy_N for part in parts]),
            option_nll_NK=np.concatenate(padded),
            target_N=np.concatenate([part.target_N for part in parts]),
        )

    def token_nlls(self, tokens: ScoredTokens) -> NDArray[np.float64]:
        """NLL in nats of each scored token."""
        nll: NDArray[np.float64] = self.nll_N[tokens.entry].copy()
        in_column = tokens.column >= 0
        nll[in_column] = self.option_nll_NK[tokens.entry[in_column], tokens.column[in_column]]
        return nll


@dataclass(frozen=True)
class TranscriptScores:
    """One transcript's share of a batch's scores."""

    entries: EntryScores
    tokens: ScoredTokens
    branches: ScoredRuns


def response_rows(
    transcript: Transcript, encoded: Encoded, request: Request, scores: TranscriptScores, *, per_token: bool
) -> Iterator[dict[str, Any]]:
    """One row for every response of the source text, scored or with the reason why not in `flags`."""
    nll_T = scores.entries.token_nlls(scores.tokens)
    option_nlls = _option_nlls(encoded, scores)
    sources = find_responses(transcript.text).responses
    for source, tokens, option_set in zip(sources, encoded.responses, encoded.option_sets, strict=True):
        response_idx = tokens.response_idx
        row: dict[str, Any] = {
            "study": transcript.study,
            "experiment": transcript.experiment,
            "participant": transcript.participant,
            "response_idx": response_idx,
            "response": transcript.text[source.char_start : source.char_stop],
            "char_start": source.char_start,
            "char_stop": source.char_stop,
            "rt_ms": transcript.rts_ms[response_idx] if transcript.rts_ms is not None else None,
            "options": list(option_set) if option_set is not None else None,
            "option_nll_nats": None,
        }
        if option_set is not None:
            found = option_nlls.get(response_idx, {})
            row["option_nll_nats"] = [found.get(option_idx) for option_idx in range(len(option_set))]
        row.update(_scored(tokens, encoded, request, scores, nll_T, per_token=per_token))
        yield row


_UNSCORED = ("token_start", "token_stop", "num_tokens", "nll_nats", "is_argmax", "rank", "entropy_nats")


def _scored(
    tokens: ResponseTokens,
    encoded: Encoded,
    request: Request,
    scores: TranscriptScores,
    nll_T: NDArray[np.float64],
    *,
    per_token: bool,
) -> dict[str, Any]:
    """The columns that depend on the model."""
    if tokens.token_start is None or tokens.token_stop is None:
        empty = dict.fromkeys(_UNSCORED)
        return {
            **empty,
            "flags": list(tokens.flags),
            **({"token_ids": None, "token_nll_nats": None} if per_token else {}),
        }
    first, last = np.searchsorted(request.scored_positions, [tokens.token_start, tokens.token_stop])
    entry = scores.tokens.entry[first:last]
    entries = scores.entries
    nlls = nll_T[first:last].tolist()
    nll = math.fsum(nlls) if all(map(math.isfinite, nlls)) else math.nan
    entropy = float(entries.entropy_N[entry[0]])
    failed = not math.isfinite(nll)
    columns: dict[str, Any] = {
        "token_start": tokens.token_start,
        "token_stop": tokens.token_stop,
        "num_tokens": tokens.token_stop - tokens.token_start,
        "nll_nats": None if failed else nll,
        "is_argmax": None if failed else bool((entries.argmax_N[entry] == entries.target_N[entry]).all()),
        "rank": None if failed else int(entries.rank_N[entry[0]]),
        "entropy_nats": entropy if math.isfinite(entropy) and not failed else None,
        "flags": sorted({*tokens.flags, "nan"}) if failed else list(tokens.flags),
    }
    if per_token:
        columns["token_ids"] = encoded.ids[tokens.token_start : tokens.token_stop].tolist()
        columns["token_nll_nats"] = [value if math.isfinite(value) else None for value in nlls]
    return columns


def _option_nlls(encoded: Encoded, scores: TranscriptScores) -> dict[int, dict[int, float | None]]:
    """NLL of every option that has a branch, by response and option; None where it is not a number."""
    found: dict[int, dict[int, float | None]] = {}
    for option, tokens in zip(encoded.options, scores.branches, strict=True):
        nll = math.fsum(scores.entries.token_nlls(tokens).tolist())
        found.setdefault(option.response_idx, {})[option.option_idx] = nll if math.isfinite(nll) else None
    return found


DIGEST_BYTES = 16


def transcript_digest(transcript: Transcript) -> bytes:
    """Identifies what a transcript's results depend on: its key, text, reaction times, options and trials. 16 bytes."""
    parts: list[Any] = [*transcript.key, transcript.text_sha256, transcript.rts_ms, transcript.options]
    # Only where there are any, so that the data of runs that knew neither keep their hash.
    if transcript.trials is not None or transcript.uncertain_options:
        parts += [transcript.trials, transcript.uncertain_options]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=DIGEST_BYTES).digest()


def participant_row(transcript: Transcript) -> Mapping[str, Any]:
    """A participant's row of participants.parquet."""
    return {
        "study": transcript.study,
        "experiment": transcript.experiment,
        "participant": transcript.participant,
        "source_file": transcript.source_file,
        "source_row": transcript.source_row,
        "text_sha256": transcript.text_sha256,
        "num_responses": transcript.num_responses,
        "num_chars": len(transcript.text),
        **{name: transcript.persona.get(name) for name in PERSONA_FIELDS},
        "extra": transcript.extra,
    }
