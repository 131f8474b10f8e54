"""Names, columns and types of the metrics' tables; docs/metrics.md says what they mean."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

TEXT, COUNT, NUMBER, YES_NO = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()
Schema = Mapping[str, pl.DataType]

_OVER_OPTIONS = {
    "share_of_responses": NUMBER,
    "share_of_participants": NUMBER,
    "is_partial": YES_NO,
    "guess_nats": NUMBER,
    "pseudo_r2": NUMBER,
    "normalised_nll_nats": NUMBER,
    "choice_accuracy": NUMBER,
    "brier": NUMBER,
    "ece": NUMBER,
}
_CELL = {"model": TEXT, "condition": TEXT}
_SIDES = {"model_a": TEXT, "condition_a": TEXT, "model_b": TEXT, "condition_b": TEXT}

LIMITS = {"low": NUMBER, "high": NUMBER, "low_fixed": NUMBER, "high_fixed": NUMBER}
"""Of d: the interval with the studies random, and with the studies fixed."""

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
    "difference_nats": NUMBER,
    "p_value": NUMBER,
    "q_value": NUMBER,
}

_MEANS = {**_SIDES, "num_experiments": COUNT, "num_participants": COUNT, "d": NUMBER, **LIMITS}

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
        **_OVER_OPTIONS,
        "above_markov_nats": NUMBER,
        "above_markov_low": NUMBER,
        "above_markov_high": NUMBER,
        "above_markov_low_fixed": NUMBER,
        "above_markov_high_fixed": NUMBER,
        "beats_markov": YES_NO,
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
    "condition_effects": _EFFECTS,
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
        **LIMITS,
    },
    "types": {"type": TEXT, "condition": TEXT, "num_pairs": COUNT, "d": NUMBER, **LIMITS},
    "generations": {"generation": TEXT, "condition": TEXT, "num_pairs": COUNT, "d": NUMBER, **LIMITS},
    "categories": {**_SIDES, "category": TEXT, "num_experiments": COUNT, "d": NUMBER, **LIMITS},
    "category_means": {"category": TEXT, "condition": TEXT, "num_pairs": COUNT, "d": NUMBER, **LIMITS},
    "choices": {
        **_CELL,
        "experiment": TEXT,
        "num_responses": COUNT,
        "num_participants": COUNT,
        **_OVER_OPTIONS,
    },
    "reliability": {
        **_CELL,
        "experiment": TEXT,
        "bin": COUNT,
        "num_responses": COUNT,
        "confidence": NUMBER,
        "accuracy": NUMBER,
    },
    "agreement": {
        **_CELL,
        "experiment": TEXT,
        "num_items": COUNT,
        "num_responses": COUNT,
        "jensen_shannon": NUMBER,
        "total_variation": NUMBER,
    },
    "participants": {
        **_CELL,
        "experiment": TEXT,
        "study": TEXT,
        "source_experiment": TEXT,
        "participant": TEXT,
        "num_scored": COUNT,
        "nll_nats": NUMBER,
    },
    "correlations": {
        "model_a": TEXT,
        "model_b": TEXT,
        "condition": TEXT,
        "num_participants": COUNT,
        "num_experiments": COUNT,
        "pearson": NUMBER,
        "spearman": NUMBER,
    },
    "baselines": {"baseline": TEXT, "experiment": TEXT, "num_responses": COUNT, "nll_nats": NUMBER},
    "model_baselines": {
        **_CELL,
        "baseline": TEXT,
        "experiment": TEXT,
        "num_responses": COUNT,
        "nll_nats": NUMBER,
        "baseline_nats": NUMBER,
        "difference_nats": NUMBER,
        "beats": YES_NO,
    },
    "intervals": {
        "quantity": TEXT,
        **_SIDES,
        "experiment": TEXT,
        "estimand": TEXT,
        "estimate": NUMBER,
        "se": NUMBER,
        "low": NUMBER,
        "high": NUMBER,
        "level": NUMBER,
        "pooled_low": NUMBER,
        "pooled_high": NUMBER,
        "num_experiments": COUNT,
        "num_participants": COUNT,
        "reason": TEXT,
    },
    "equivalence": {
        **_SIDES,
        "estimand": TEXT,
        "d": NUMBER,
        "margin": NUMBER,
        "low_90": NUMBER,
        "high_90": NUMBER,
        "p_value": NUMBER,
        "is_equivalent": YES_NO,
        "reason": TEXT,
    },
    "persona": _MEANS,
    "template": _MEANS,
    "conditions": _MEANS,
}


def table(name: str, rows: list[dict[str, object]] | pl.DataFrame | None = None) -> pl.DataFrame:
    """A table of that name with its columns and types; NaN becomes null."""
    schema = TABLES[name]
    frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows or [], schema=schema, orient="row")
    if missing := [column for column in schema if column not in frame.columns]:
        frame = frame.with_columns(pl.lit(None, dtype=schema[column]).alias(column) for column in missing)
    numbers = [column for column, kind in schema.items() if kind == NUMBER]
    cast = frame.select(pl.col(column).cast(kind) for column, kind in schema.items())
    return cast.with_columns(pl.col(numbers).fill_nan(None))
