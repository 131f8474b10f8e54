"""Tables `participants` and `correlations`: who is predicted badly, and whether models agree on whom."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from psyfast.metrics.responses import Floats, Ints, ResponseIndex
from psyfast.metrics.schema import table

Row = dict[str, object]
Key = tuple[str, str]


def participant_table(index: ResponseIndex, totals: Mapping[Key, Floats]) -> pl.DataFrame:
    """Table `participants`. totals: by model and condition the sum of NLLs and the number of scored responses, [P, 2]."""
    frames = []
    for (model, condition), totals_P2 in totals.items():
        used = totals_P2[:, 1] > 0
        people = index.participants.filter(pl.Series(used))
        frames.append(
            people.select("study", pl.col("group").alias("experiment"), "participant").with_columns(
                source_experiment=people["experiment"],
                model=pl.lit(model),
                condition=pl.lit(condition),
                num_scored=pl.Series(totals_P2[used, 1]),
                nll_nats=pl.Series(totals_P2[used, 0] / totals_P2[used, 1]),
            )
        )
    return table("participants", pl.concat(frames)) if frames else table("participants")


def correlation_table(index: ResponseIndex, totals: Mapping[Key, Floats]) -> pl.DataFrame:
    """Table `correlations`: of participants' mean NLLs under two models, within experiments.

    Each experiment's own mean is taken off first (of ranks, for Spearman's), so that easy and hard experiments alone make
    no correlation; experiments of fewer than 3 joint participants are left out.
    """
    keys = list(totals)
    found: dict[tuple[Key, Key], Row] = {}
    for condition in dict.fromkeys(condition for _, condition in keys):
        mine = [key for key in keys if key[1] == condition]
        with np.errstate(invalid="ignore", divide="ignore"):
            means_MP = np.stack([totals[key][:, 0] / totals[key][:, 1] for key in mine])
        found |= {(mine[one], mine[other]): row for (one, other), row in _correlations(index, means_MP).items()}
    rows = [
        {"model_a": one[0], "model_b": other[0], "condition": one[1], **found[one, other]}
        for number, one in enumerate(keys)
        for other in keys[number + 1 :]
        if one[1] == other[1]
    ]
    return table("correlations", rows)


def _correlations(index: ResponseIndex, means_MP: Floats) -> dict[tuple[int, int], Row]:
    """Of every two of M models. Models that scored the same participants are taken together: one product for all."""
    known_MP = np.isfinite(means_MP)
    alike: dict[bytes, list[int]] = {}
    for model, known_P in enumerate(known_MP):
        alike.setdefault(known_P.tobytes(), []).append(model)
    found: dict[tuple[int, int], Row] = {}
    sets = list(alike.values())
    for number, one in enumerate(sets):
        for other in sets[number:]:
            joint = known_MP[one[0]] & known_MP[other[0]]
            joint &= (index.group_sums(joint) >= 3)[index.group_P]
            models = one if one is other else one + other
            group, values = index.group_P[joint], means_MP[models][:, joint]
            pearson, spearman = _within(group, values), _within(group, _ranks(group, values))
            num_participants, num_experiments = int(joint.sum()), len(np.unique(group))
            places = {model: place for place, model in enumerate(models)}
            for x in one:
                for y in other:
                    found[min(x, y), max(x, y)] = {
                        "num_participants": num_participants,
                        "num_experiments": num_experiments,
                        "pearson": float(pearson[places[x], places[y]]),
                        "spearman": float(spearman[places[x], places[y]]),
                    }
    return found


def _within(group: Ints, values_MP: Floats) -> Floats:
    """Correlations of the deviations from the groups' means, [M, M]; NaN where there are none."""
    if not len(group):
        return np.full((len(values_MP), len(values_MP)), np.nan)
    num = np.maximum(np.bincount(group), 1)
    centred_MP = np.stack([v - (np.bincount(group, weights=v) / num)[group] for v in values_MP])
    products_MM = centred_MP @ centred_MP.T
    scale_M = np.sqrt(np.diagonal(products_MM))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(products_MM / (scale_M[:, None] * scale_M))


def _ranks(group: Ints, values_MP: Floats) -> Floats:
    """Ranks within each group, equal values sharing their mean rank."""
    frame = pl.DataFrame({"group": group, **{str(model): values for model, values in enumerate(values_MP)}})
    ranks = frame.select(pl.exclude("group").rank("average").over("group"))
    return np.ascontiguousarray(ranks.to_numpy().T, np.float64)
