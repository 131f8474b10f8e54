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
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {key: totals[key][:, 0] / totals[key][:, 1] for key in keys}
    rows: list[Row] = []
    for number, one in enumerate(keys):
        for other in keys[number + 1 :]:
            if one[1] == other[1]:
                rows.append(_row(index, one, other, means[one], means[other]))
    return table("correlations", rows)


def _row(index: ResponseIndex, one: Key, other: Key, x_P: Floats, y_P: Floats) -> Row:
    joint = np.isfinite(x_P) & np.isfinite(y_P)
    joint &= (index.group_sums(joint) >= 3)[index.group_P]
    group, x, y = index.group_P[joint], x_P[joint], y_P[joint]
    return {
        "model_a": one[0],
        "model_b": other[0],
        "condition": one[1],
        "num_participants": int(joint.sum()),
        "num_experiments": len(np.unique(group)),
        "pearson": _within(group, x, y),
        "spearman": _within(group, _ranks(group, x), _ranks(group, y)),
    }


def _within(group: Ints, x: Floats, y: Floats) -> float:
    """Correlation of the deviations from the groups' means."""
    if not len(x):
        return float("nan")
    num = np.bincount(group)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (v - (np.bincount(group, weights=v) / num)[group] for v in (x, y))
        return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def _ranks(group: Ints, values: Floats) -> Floats:
    """Ranks within each group, equal values sharing their mean rank."""
    frame = pl.DataFrame({"group": group, "value": values})
    return frame.select(pl.col("value").rank("average").over("group"))["value"].to_numpy()
