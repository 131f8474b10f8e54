"""Effect sizes by contrast and experiment, and their means by pair, type, generation and category (PROTOCOL 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from psyfast.metrics.categories import Categories
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.contrasts import CONDITION, PERSONA, POST_TRAINING, TEMPLATE, Contrast
from psyfast.metrics.moments import ContrastMoments, effect_sizes
from psyfast.metrics.pairs import PairTable
from psyfast.metrics.permutation import benjamini_hochberg, sign_flip_ps
from psyfast.metrics.responses import Floats, ResponseIndex
from psyfast.metrics.schema import table

Row = dict[str, object]
SIDES = ["model_a", "condition_a", "model_b", "condition_b"]
EFFECTS_OF = {
    POST_TRAINING: "pair_effects",
    PERSONA: "persona_effects",
    TEMPLATE: "template_effects",
    CONDITION: "condition_effects",
}
MEANS_OF = {PERSONA: "persona", TEMPLATE: "template", CONDITION: "conditions"}
"""Kinds of contrasts whose mean over experiments has a table of its own."""


def sides(contrast: Contrast) -> Row:
    """The four columns that name a contrast."""
    return dict(zip(SIDES, (*contrast.a, *contrast.b), strict=True))


def effect_rows(
    contrast: Contrast, moments: ContrastMoments, groups: Sequence[str], ddof: int, left_out: Sequence[int] = ()
) -> list[Row]:
    """Rows of an effects table: experiments of which both cells scored a response, those left out aside."""
    d_G, reasons = effect_sizes(moments, ddof)
    sd_a_G, sd_b_G = moments.a.sd_G(ddof), moments.b.sd_G(ddof)
    return [
        {
            **sides(contrast),
            "experiment": group,
            "num_participants": int(moments.num_participants_G[idx]),
            "num_responses": int(moments.num_joint_G[idx]),
            "num_a": int(moments.a.num_G[idx]),
            "num_b": int(moments.b.num_G[idx]),
            "mean_a_nats": float(moments.a.mean_G[idx]),
            "mean_b_nats": float(moments.b.mean_G[idx]),
            "sd_a_nats": float(sd_a_G[idx]),
            "sd_b_nats": float(sd_b_G[idx]),
            "ddof": ddof,
            "d": float(d_G[idx]),
            "reason": reasons[idx],
        }
        for idx, group in enumerate(groups)
        if moments.a.num_G[idx] and moments.b.num_G[idx] and idx not in left_out
    ]


def add_tests(
    of_contrasts: Sequence[list[Row]], paired: Sequence[Floats], index: ResponseIndex, config: MetricsConfig
) -> None:
    """Add the participants' mean paired difference, its sign-flip p and, over each contrast's experiments, q.

    of_contrasts: the rows of each contrast. paired: its Σa, Σb and number of joint responses by participant, [P, 3].
    """
    rows = {(number, row["experiment"]): row for number, of in enumerate(of_contrasts) for row in of}
    for group, members in zip(index.groups, index.members_G, strict=True):
        alike: dict[bytes, list[tuple[Row, Floats]]] = {}
        for number, totals_P3 in enumerate(paired):
            if (row := rows.get((number, group))) is not None:
                a_C, b_C, num_C = totals_P3[members].T
                joint = num_C > 0
                differences_C = (b_C[joint] - a_C[joint]) / num_C[joint]
                alike.setdefault(joint.tobytes(), []).append((row, differences_C))
        for tested in alike.values():
            differences_CK = np.stack([differences_C for _, differences_C in tested], axis=1)
            p_values = sign_flip_ps(differences_CK, group, config.num_flips, config.seed)
            for (row, differences_C), p_value in zip(tested, p_values, strict=True):
                row["difference_nats"] = float(differences_C.mean()) if len(differences_C) else float("nan")
                row["p_value"] = float(p_value)
    for of in of_contrasts:
        for row, q_value in zip(of, benjamini_hochberg(np.array([row["p_value"] for row in of])), strict=True):
            row["q_value"] = float(q_value)


def contrast_means(effects: pl.DataFrame) -> pl.DataFrame:
    """For each contrast the mean d over the experiments that have one, their number, and the participants on both sides."""
    return effects.group_by(SIDES, maintain_order=True).agg(
        num_experiments=pl.col("d").count(), num_participants=pl.col("num_participants").sum(), d=pl.col("d").mean()
    )


def pair_table(effects: pl.DataFrame, contrasts: Sequence[Contrast], pairs: PairTable) -> pl.DataFrame:
    """Table `pairs`."""
    rows = [
        {
            "base": contrast.pair.base,
            "post": contrast.pair.post,
            **sides(contrast),
            "type": contrast.pair.type,
            "generation": pairs.generation_of(contrast.pair),
            "base_size_b": pairs.size_of(contrast.pair.base),
            "post_size_b": pairs.size_of(contrast.pair.post),
            "apart": contrast.pair.apart,
            "in_trend": pairs.in_trend(contrast.pair),
        }
        for contrast in contrasts
        if contrast.pair is not None
    ]
    if not rows:
        return table("pairs")
    facts = pl.DataFrame(rows, infer_schema_length=None)
    return table("pairs", facts.join(contrast_means(effects), on=SIDES, how="inner", maintain_order="left"))


def type_table(pairs: pl.DataFrame) -> pl.DataFrame:
    """Table `types`: mean over the pairs of a type."""
    return table("types", _means_of_pairs(pairs.filter(~pl.col("apart")), "type"))


def generation_table(pairs: pl.DataFrame) -> pl.DataFrame:
    """Table `generations`: mean over the sizes of a generation, of the pairs of the trend."""
    return table("generations", _means_of_pairs(pairs.filter("in_trend"), "generation"))


def _means_of_pairs(pairs: pl.DataFrame, by: str) -> pl.DataFrame:
    return (
        pairs.rename({"condition_a": "condition"})
        .group_by(by, "condition", maintain_order=True)
        .agg(num_pairs=pl.col("d").count(), d=pl.col("d").mean())
    )


def category_table(effects: pl.DataFrame, categories: Categories) -> pl.DataFrame:
    """Table `categories`: for each pair the mean over the experiments of a category, those without one included."""
    if effects.is_empty() or not categories.names:
        return table("categories")
    named = pl.DataFrame(
        categories.table(effects["experiment"].unique().sort().to_list()),
        schema=["experiment", "category"],
        orient="row",
    )
    means = (
        effects.join(named, on="experiment", how="inner", maintain_order="left_right")
        .group_by(*SIDES, "category", maintain_order=True)
        .agg(num_experiments=pl.col("d").count(), d=pl.col("d").mean())
    )
    return table("categories", means)


def category_mean_table(by_pair: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Table `category_means`: mean over the pairs, those apart aside."""
    counted = by_pair.join(pairs.filter(~pl.col("apart")).select(SIDES), on=SIDES, how="semi", maintain_order="left")
    return table("category_means", _means_of_pairs(counted, "category").sort("condition", "category"))


def condition_tables(effects: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Tables `persona`, `template`, `conditions`: the mean over experiments for each model and pair of conditions."""
    return {name: table(name, contrast_means(effects[EFFECTS_OF[kind]])) for kind, name in MEANS_OF.items()}
