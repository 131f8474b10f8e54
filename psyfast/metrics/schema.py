"""Names, columns and types of the metrics' tables; docs/metrics.md says what they mean."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

TEXT, COUNT, NUMBER, YES_NO = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()
Schema = Mapping[str, pl.DataType]

_CELL = {"model": TEXT, "condition": TEXT}
_SIDES = {"model_a": TEXT, "condition_a": TEXT, "model_b": TEXT, "condition_b": TEXT}

_EFFECTS = {
    **_SIDES,
    "experiment": TEXT,
    "num_participants": COUNT,
    "num_responses": COUNT,
    "num_a": COUNT,
    "num_b": COUNT,
    "mean_a_nats": NUMBER,
    "mean_b_nats": NUMBER,
    "sd_a_nats": NUMBER,
    "sd_b_nats": NUMBER,
    "ddof": COUNT,
    "d": NUMBER,
    "reason": TEXT,
}

TABLES: dict[str, Schema] = {
    "models": {
        **_CELL,
        "generation": TEXT,
        "size_b": NUMBER,
        "type": TEXT,
        "num_experiments": COUNT,
        "num_participants": COUNT,
        "num_responses": COUNT,
        "num_scored": COUNT,
        "nll_nats": NUMBER,
        "accuracy": NUMBER,
    },
    "experiments": {
        **_CELL,
        "experiment": TEXT,
        "category": TEXT,
        "num_participants": COUNT,
        "num_responses": COUNT,
        "num_scored": COUNT,
        "nll_nats": NUMBER,
        "sd_nats": NUMBER,
        "accuracy": NUMBER,
    },
    "accuracy": {**_CELL, "experiment": TEXT, "num_scored": COUNT, "accuracy": NUMBER},
    "pair_effects": _EFFECTS,
    "persona_effects": _EFFECTS,
    "template_effects": _EFFECTS,
    "pairs": {
        "base": TEXT,
        "post": TEXT,
        **_SIDES,
        "type": TEXT,
        "generation": TEXT,
        "base_size_b": NUMBER,
        "post_size_b": NUMBER,
        "apart": YES_NO,
        "in_trend": YES_NO,
        "num_experiments": COUNT,
        "d": NUMBER,
    },
    "types": {"type": TEXT, "condition": TEXT, "num_pairs": COUNT, "d": NUMBER},
    "generations": {"generation": TEXT, "condition": TEXT, "num_pairs": COUNT, "d": NUMBER},
    "categories": {**_SIDES, "category": TEXT, "num_experiments": COUNT, "d": NUMBER},
    "category_means": {"category": TEXT, "condition": TEXT, "num_pairs": COUNT, "d": NUMBER},
    "persona": {**_SIDES, "num_experiments": COUNT, "d": NUMBER},
    "template": {**_SIDES, "num_experiments": COUNT, "d": NUMBER},
}


def table(name: str, rows: list[dict[str, object]] | pl.DataFrame | None = None) -> pl.DataFrame:
    """A table of that name with its columns and types; NaN becomes null."""
    schema = TABLES[name]
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows or [], schema=schema, orient="row")
    numbers = [column for column, kind in schema.items() if kind == NUMBER]
    cast = frame.select(pl.col(column).cast(kind) for column, kind in schema.items())
    return cast.with_columns(pl.col(numbers).fill_nan(None))
