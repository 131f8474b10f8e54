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
from psyfast.data.rendering import Rendering, Source
from psyfast.ops.records import HeadScores
from psyfast.plan.records import Branch, Request, ScoredRuns, ScoredTokens


def request_of(encoded: Encoded) -> Request:
    """What the engine must compute for an encoded transcript."""
    spans = [(r.token_start, r.token_stop) for r in encoded.responses if r.token_start is not None]
    positions = [np.arange(start, stop) for start, stop in spans]
    return Request(
        ids=encoded.ids,
        scored_positions=np.unique(np.concatenate(positions)) if positions else np.zeros(0, np.int64),
        branches=tuple(
            Branch(option.branch_start, option.ids, option.score_start, option.score_stop) for option in encoded.options
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


@dataclass(frozen=True)
class ScoredText:
    """A rendered text on its way back: what it was encoded to, what was asked of the engine, and what came of it."""

    encoded: Encoded
    request: Request
    scores: TranscriptScores


def response_rows(
    source: Source, rendering: Rendering, texts: Sequence[ScoredText], *, per_token: bool
) -> Iterator[dict[str, Any]]:
    """One row for every response of the source text, scored or with the reason why not in `flags`.

    texts: those of the rendering, in its order.
    """
    scored = {
        tokens.response_idx: (columns, option_nlls.get(tokens.response_idx, {}))
        for text in texts
        for option_nlls in [_option_nlls(text.encoded, text.scores)]
        for tokens, columns in _scored_columns(text, per_token=per_token)
    }
    transcript = source.transcript
    for response_idx, response in enumerate(source.responses):
        option_set = source.option_sets[response_idx]
        columns, option_nlls = scored.get(response_idx) or (
            _unscored_columns(rendering.flags_of_unscored(response_idx), per_token=per_token),
            {},
        )
        yield {
            "study": transcript.study,
            "experiment": transcript.experiment,
            "participant": transcript.participant,
            "response_idx": response_idx,
            "response": transcript.text[response.char_start : response.char_stop],
            "char_start": response.char_start,
            "char_stop": response.char_stop,
            "rt_ms": transcript.rts_ms[response_idx] if transcript.rts_ms is not None else None,
            "options": None if option_set is None else list(option_set),
            "option_nll_nats": None
            if option_set is None
            else [option_nlls.get(option_idx) for option_idx in range(len(option_set))],
            **columns,
        }


_UNSCORED = ("token_start", "token_stop", "num_tokens", "nll_nats", "is_argmax", "rank", "entropy_nats")


def _scored_columns(text: ScoredText, *, per_token: bool) -> Iterator[tuple[ResponseTokens, dict[str, Any]]]:
    """The columns that depend on the model, of each response that the text is to score."""
    nll_T = text.scores.entries.token_nlls(text.scores.tokens)
    for tokens in text.encoded.responses:
        yield tokens, _scored(tokens, text, nll_T, per_token=per_token)


def _unscored_columns(flags: Sequence[str], *, per_token: bool) -> dict[str, Any]:
    per_token_columns = {"token_ids": None, "token_nll_nats": None} if per_token else {}
    return {**dict.fromkeys(_UNSCORED), "flags": list(flags), **per_token_columns}


def _scored(tokens: ResponseTokens, text: ScoredText, nll_T: NDArray[np.float64], *, per_token: bool) -> dict[str, Any]:
    if tokens.token_start is None or tokens.token_stop is None:
        return _unscored_columns(tokens.flags, per_token=per_token)
    encoded, request, scores = text.encoded, text.request, text.scores
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
