"""Where in a session the loss is: means by tenth of the session, from the rows of responses.

The files know the order of responses, not trials, so a session is cut by responses: tenth 0 holds the first tenth of a
participant's marked responses. Only participants of 10 responses or more who have a value in every tenth count, so that the
same people stand behind every point of a curve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from psyfast.metrics.responses import KEY, read_columns
from psyfast.metrics.results import Cell
from psyfast.report.findings import Findings

NUM_TENTHS = 10
ALL = "all experiments"
MEASURES = ("nll_nats", "agreement")
_COLUMNS = [*KEY, "response_idx", "nll_nats", "rt_ms", "response", "options", "option_nll_nats"]


def curves(findings: Findings) -> pl.DataFrame:
    """Rows (model, condition, experiment, tenth, measure, value, low, high, num_participants, num_experiments).

    measure nll_nats: mean NLL; agreement: share of responses that are the most probable option. value: mean over
    participants of their means in the tenth, by experiment, and under ALL the unweighted mean over experiments. low, high:
    ± 1 standard error over participants (over experiments under ALL) of what lies above the session's own mean.
    """
    found = [_of_cell(findings, cell) for cell in findings.results.cells]
    return pl.concat(found).select("model", "condition", pl.exclude("model", "condition"))


def reaction_times(findings: Findings) -> pl.DataFrame:
    """The same rows without model and condition, of measure rt_ratio: a tenth's median reaction time over the session's
    own median (geometric means of those of participants).
    """
    cells: dict[str, Cell] = {}
    for cell in sorted(findings.results.cells, key=lambda cell: cell.condition != findings.condition):
        for part in cell.parts:
            cells.setdefault(str(part.run), cell)
    read = [
        _joined(findings, frame) for run, cell in cells.items() for part, frame in _frames(cell) if str(part) == run
    ]
    rows = pl.concat(read).unique([*KEY, "response_idx"], maintain_order=True).filter(pl.col("rt_ms") > 0)
    session = rows.group_by(KEY).agg(session_ms=pl.col("rt_ms").median())
    by_tenth = rows.group_by(*KEY, "group", "tenth").agg(pl.col("rt_ms").median())
    by_tenth = by_tenth.join(session, on=KEY).with_columns(value=(pl.col("rt_ms") / pl.col("session_ms")).log())
    found = _summarised(by_tenth.drop("rt_ms", "session_ms"), "rt_ratio")
    return found.with_columns(pl.col("value", "low", "high").exp())


def _of_cell(findings: Findings, cell: Cell) -> pl.DataFrame:
    frame = pl.concat([_joined(findings, frame) for _, frame in _frames(cell)])
    best = pl.col("options").list.get(pl.col("option_nll_nats").list.arg_min(), null_on_oob=True)
    usable = (
        (pl.col("options").list.len() >= 2)
        & (pl.col("option_nll_nats").list.drop_nulls().list.len() == pl.col("options").list.len())
        & pl.col("option_nll_nats").list.eval(pl.element().is_finite()).list.all()
        & pl.col("options").list.contains(pl.col("response").str.strip_chars())
        & pl.col("nll_nats").is_not_null()
    )
    frame = frame.with_columns(
        agreement=pl.when(usable).then((best == pl.col("response").str.strip_chars()).cast(pl.Float64))
    )
    frame = frame.with_columns(pl.col("nll_nats").fill_nan(None))
    found = []
    for measure in MEASURES:
        by_tenth = (
            frame.filter(pl.col(measure).is_not_null())
            .group_by(*KEY, "group", "tenth", maintain_order=True)
            .agg(value=pl.col(measure).mean())
        )
        found.append(_summarised(by_tenth, measure))
    return pl.concat(found).with_columns(model=pl.lit(cell.model), condition=pl.lit(cell.condition))


def _frames(cell: Cell) -> Iterator[tuple[object, pl.DataFrame]]:
    for part in cell.parts:
        yield part.run, read_columns(part, _COLUMNS)


def _joined(findings: Findings, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows with their group and tenth; without the studies that are left out."""
    people = findings.index.participants.select(*KEY, "group", "num_responses")
    people = people.filter(
        pl.col("num_responses") >= NUM_TENTHS, ~pl.col("study").is_in(list(findings.metrics.config.left_out))
    )
    tenth = (pl.col("response_idx") * NUM_TENTHS) // pl.col("num_responses")
    return frame.join(people, on=KEY, how="inner", maintain_order="left").with_columns(tenth=tenth.cast(pl.Int64))


def _summarised(by_tenth: pl.DataFrame, measure: str) -> pl.DataFrame:
    """From values by participant and tenth to the curves of experiments, and of all."""
    whole = by_tenth.filter(pl.len().over(KEY) == NUM_TENTHS)
    experiments = (
        _means(whole, ["group"], KEY).rename({"num": "num_participants"}).with_columns(num_experiments=pl.lit(1))
    )
    overall = _means(experiments.select("group", "tenth", "value"), [], ["group"])
    num_people = experiments.group_by("tenth").agg(pl.col("num_participants").sum())
    overall = overall.join(num_people, on="tenth").with_columns(group=pl.lit(ALL)).rename({"num": "num_experiments"})
    columns = ["experiment", "tenth", "measure", "value", "low", "high", "num_participants", "num_experiments"]
    return pl.concat(
        [
            frame.rename({"group": "experiment"})
            .with_columns(pl.col("num_participants", "num_experiments").cast(pl.Int64), measure=pl.lit(measure))
            .select(columns)
            for frame in (overall, experiments)
        ]
    ).sort("experiment", "tenth")


def _means(values: pl.DataFrame, by: Sequence[str], unit: Sequence[str]) -> pl.DataFrame:
    """Mean over units by tenth, ± 1 standard error of their deviations from their own mean over the session."""
    own = pl.col("value") - pl.col("value").mean().over(unit)
    return (
        values.with_columns(deviation=own)
        .group_by(*by, "tenth", maintain_order=True)
        .agg(pl.col("value").mean(), se=pl.col("deviation").std() / pl.len().sqrt(), num=pl.len())
        .with_columns(low=pl.col("value") - pl.col("se"), high=pl.col("value") + pl.col("se"))
        .drop("se")
    )
