"""The transcripts that the page shows: a seeded choice, their text cut at the responses, every model's NLL of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from psyfast.errors import RunError
from psyfast.metrics.contrasts import PLAIN
from psyfast.metrics.responses import KEY
from psyfast.metrics.results import Cell
from psyfast.report.findings import Findings

MAX_CHARS = 40_000
"""Of a transcript; the page says where one is cut."""
FULL_TEXT = "4 nats and more"
"""The darkest colour of a response; as FULL_NATS of page.js."""


@dataclass(frozen=True)
class Browser:
    """transcripts: as the page's script reads them. num_participants: of how many they were chosen. missing: instead."""

    transcripts: tuple[Mapping[str, Any], ...] = ()
    num_participants: int = 0
    missing: str = ""


def choose_transcripts(findings: Findings, count: int, seed: int) -> Browser:
    """`count` transcripts, seeded, as evenly over the experiments as they last.

    Each is {experiment, participant, pieces, cut, nll}: pieces alternate text and response, beginning with text; nll has,
    by model and condition, one number (null: not scored) a response. Raises RunError where the text in a run is not that
    of its participants table.
    """
    if count == 0:
        return Browser(missing="Left out: --transcripts 0.")
    texts = _texts(findings)
    if texts.is_empty():
        return Browser(missing="The runs hold no text of the condition plain, in which responses have their place.")
    chosen = _choose(texts, count, seed)
    spans, nlls = _responses(findings, chosen)
    found = []
    for row in chosen.to_dicts():
        key = tuple(row[name] for name in KEY)
        if key in spans:
            found.append(_transcript(findings, row, key, spans[key], nlls))
    if not found:
        return Browser(missing="The rows of responses do not say where in the text they stand.")
    return Browser(tuple(found), len(texts))


def _texts(findings: Findings) -> pl.DataFrame:
    """Participants (with their group) whose source text some run holds, and `run`, the number of that run."""
    frames = []
    for number, run in enumerate(findings.results.runs):
        try:
            scan = pl.scan_parquet(run.transcripts_path, glob=False, hive_partitioning=False)
            frames.append(
                scan.filter(pl.col("condition") == PLAIN).select(KEY).collect().with_columns(run=pl.lit(number))
            )
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RunError(f"{run.transcripts_path}: cannot be read ({error}); was it removed?") from error
    people = findings.index.participants.filter(~pl.col("study").is_in(list(findings.metrics.config.left_out)))
    return people.join(pl.concat(frames).unique(KEY, maintain_order=True), on=KEY, how="inner", maintain_order="left")


def _choose(texts: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """A random order within each experiment, then the first of each, the second of each, and so on."""
    rng = np.random.default_rng(seed)
    shuffled = texts.with_columns(lot=pl.Series(rng.random(len(texts))))
    turn = pl.col("lot").rank("ordinal").over("group")
    return shuffled.with_columns(turn=turn).sort("turn", "lot").head(count).sort("group", "participant")


def _responses(
    findings: Findings, chosen: pl.DataFrame
) -> tuple[dict[tuple[Any, ...], list[tuple[int, int, int]]], dict[tuple[Any, ...], dict[int, float | None]]]:
    """Of the participants chosen: (response_idx, start, stop) of their responses; by (*key, model, condition) the NLLs."""
    spans: dict[tuple[Any, ...], dict[int, tuple[int, int, int]]] = {}
    nlls: dict[tuple[Any, ...], dict[int, float | None]] = {}
    for cell in findings.results.cells:
        for row in _rows(cell, chosen).iter_rows(named=True):
            key = tuple(row[name] for name in KEY)
            idx = int(row["response_idx"])
            if row["char_start"] is not None:
                spans.setdefault(key, {})[idx] = (idx, row["char_start"], row["char_stop"])
            nlls.setdefault((*key, *cell.key), {})[idx] = row["nll_nats"]
    return {key: [mine[idx] for idx in sorted(mine)] for key, mine in spans.items()}, nlls


def _rows(cell: Cell, chosen: pl.DataFrame) -> pl.DataFrame:
    columns = [*KEY, "response_idx", "char_start", "char_stop", "nll_nats"]
    paths = [path for part in cell.parts for path in part.paths]
    scan = pl.scan_parquet(paths, glob=False, hive_partitioning=False).select(columns)
    return scan.join(chosen.select(KEY).lazy(), on=KEY, how="semi").collect()


def _transcript(
    findings: Findings,
    row: Mapping[str, Any],
    key: tuple[Any, ...],
    spans: Sequence[tuple[int, int, int]],
    nlls: Mapping[tuple[Any, ...], Mapping[int, float | None]],
) -> Mapping[str, Any]:
    text = _text(findings, row)
    pieces, kept, reached = [], [], 0
    for idx, start, stop in spans:
        if start < reached or stop > MAX_CHARS:
            continue
        pieces += [text[reached:start], text[start:stop]]
        kept.append(idx)
        reached = stop
    cut = len(text) > MAX_CHARS
    pieces.append(text[reached : max(reached, MAX_CHARS)])
    by_cell = {}
    for cell in findings.results.cells:
        mine = nlls.get((*key, *cell.key))
        if mine is not None:
            by_cell[f"{findings.model_names[cell.model]}\n{cell.condition}"] = [_rounded(mine.get(idx)) for idx in kept]
    shown = findings.shown(
        pl.DataFrame({"experiment": [row["group"]], "participant": [row["participant"]]})
    ).to_dicts()[0]
    return {**shown, "pieces": pieces, "cut": len(text) if cut else None, "nll": by_cell}


def _rounded(nll: float | None) -> float | None:
    return None if nll is None or not np.isfinite(nll) else round(nll, 3)


def _text(findings: Findings, row: Mapping[str, Any]) -> str:
    path = findings.results.runs[row["run"]].transcripts_path
    mine = [pl.col(name) == row[name] for name in KEY]
    scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    text = str(scan.filter(pl.col("condition") == PLAIN, *mine).select("text").collect().item())
    if hashlib.sha256(text.encode()).hexdigest() != row["text_sha256"]:
        raise RunError(
            f"{path}: the text of participant {row['participant']}, study {row['study']}, is not the one that was scored "
            "(participants.parquet has another sha256); was the file changed?"
        )
    return text
