"""What the runs hold: participants, responses, experiments, what is known of people, Psych-101 against the rest."""

from __future__ import annotations

import json
from pathlib import Path

import altair as alt
import polars as pl

from psyfast.errors import RunError
from psyfast.metrics.responses import KEY
from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.style import colour, row_axis
from psyfast.store.reading import read_participants
from psyfast.store.run_folder import RunFolder

_NOT_FIELDS = {*KEY, "source_file", "source_row", "text_sha256", "num_responses", "num_chars", "extra"}
MARK = "is_psych101"
OLD, NEW, UNKNOWN = "Psych-101", "the rest", "all participants"


def read_people(findings: Findings) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """One row a participant: key, num_responses, the persona fields, and `source`: OLD, NEW or (no mark) UNKNOWN; and the
    names of the fields.
    """
    tables = [pl.DataFrame(read_participants(RunFolder(Path(run.path)))) for run in findings.results.runs]
    people = pl.concat(tables, how="diagonal").unique(KEY, maintain_order=True)
    fields = tuple(name for name in people.columns if name not in _NOT_FIELDS)
    marks = [_mark(extra) for extra in people["extra"]]
    return people.with_columns(source=pl.Series(marks, dtype=pl.String)), fields


def _mark(extra: str | None) -> str:
    """Whether a participant came from Psych-101, by the fields as they came: true, "True" or 1."""
    try:
        fields = json.loads(extra) if extra else {}
    except ValueError as error:
        raise RunError(
            f"participants.parquet: 'extra' is {extra!r:.80}, expected a JSON object; was it edited?"
        ) from error
    if not isinstance(fields, dict) or fields.get(MARK) is None:
        return UNKNOWN
    return OLD if str(fields[MARK]).strip().lower() in ("true", "1", "1.0", "yes") else NEW


def study_figures(findings: Findings, people: pl.DataFrame, fields: tuple[str, ...]) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order, from what `read_people` gives."""
    return _coverage(people, fields), _sources(people), _sizes(findings, people)


def coverage_table(people: pl.DataFrame, fields: tuple[str, ...]) -> pl.DataFrame:
    """Rows (field, source, num_known, num_participants, share): of how many participants a field is known."""
    rows = [
        {
            "field": name,
            "source": source,
            "num_known": mine[name].is_not_null().sum(),
            "num_participants": len(mine),
            "share": mine[name].is_not_null().mean(),
        }
        for name in fields
        for source in (OLD, NEW, UNKNOWN)
        if len(mine := people.filter(source=source))
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _coverage(people: pl.DataFrame, fields: tuple[str, ...]) -> Figure:
    name, title = "metadata", "What is known of participants"
    if not fields or not any(people[field].is_not_null().any() for field in fields):
        needs = "No field of a persona is known of any participant: the data need fields such as age or gender."
        return Figure(name, title, missing=needs)
    frame = coverage_table(people, fields)
    frame = frame.with_columns(order=pl.col("field").replace_strict(list(fields), range(len(fields))))
    sources = tuple(source for source in (OLD, NEW, UNKNOWN) if source in set(frame["source"]))
    bars = (
        alt.Chart(alt.NamedData("rows"))
        .mark_bar()
        .encode(
            alt.X("share:Q", title="share of participants of whom it is known", axis=alt.Axis(format="%")),
            row_axis("field")["y"],
            colour("source", sources, None),
            yOffset=alt.YOffset("source:N", sort=list(sources)),
            tooltip=["field:N", "source:N", alt.Tooltip("share:Q", format=".1%"), "num_known:Q", "num_participants:Q"],
        )
    )
    known = sum(bool(people[field].is_not_null().any()) for field in fields)
    return Figure(
        name,
        title,
        f"{known} of {len(fields)} fields are known of somebody; {len(people):,} participants of these runs.",
        ("metadata",),
        alt.layer(bars).properties(width="container", height=alt.Step(11)),
        {"rows": frame},
    )


def _sources(people: pl.DataFrame) -> Figure:
    name, title = "psych-101", "Psych-101 against the rest"
    marked = people.filter(pl.col("source") != UNKNOWN)
    if marked.is_empty():
        return Figure(
            name, title, missing=f"No participant says whether it came from Psych-101: the data need a field `{MARK}`."
        )
    counts = (
        marked.sort("source")
        .group_by("source", maintain_order=True)
        .agg(experiments=pl.col("study").n_unique(), participants=pl.len(), responses=pl.col("num_responses").sum())
    )
    frame = counts.unpivot(index="source", variable_name="what", value_name="count").with_columns(
        share=pl.col("count") / pl.col("count").sum().over("what"),
        order=pl.col("what").replace_strict({"experiments": 0, "participants": 1, "responses": 2}),
        text=pl.col("count").map_elements(lambda count: f"{count:,}", return_dtype=pl.String),
    )
    base = alt.Chart(alt.NamedData("rows")).encode(
        alt.X("share:Q", title="share", stack="zero", axis=alt.Axis(format="%")),
        row_axis("what")["y"],
        tooltip=["what:N", "source:N", alt.Tooltip("count:Q", format=","), alt.Tooltip("share:Q", format=".1%")],
    )
    bars = base.mark_bar().encode(colour("source", (OLD, NEW), None))
    return Figure(
        name,
        title,
        f"By the mark `{MARK}` that the data bring; "
        + "; ".join(
            f"{row['source']}: {row['experiments']:,} experiments, {row['participants']:,} participants, {row['responses']:,} responses"
            for row in counts.to_dicts()
        )
        + (f"; {len(people) - len(marked):,} participants have no mark." if len(marked) < len(people) else "."),
        ("metadata",),
        alt.layer(bars).properties(width="container", height=alt.Step(30)),
        {"rows": frame},
    )


def _sizes(findings: Findings, people: pl.DataFrame) -> Figure:
    grouped = findings.index.participants.select("num_responses", experiment="group")
    frame = findings.shown(
        grouped.group_by("experiment").agg(num_participants=pl.len(), num_responses=pl.col("num_responses").sum())
    ).sort("experiment")
    points = (
        alt.Chart(alt.NamedData("rows"))
        .mark_point(size=70, color="#0072B2")
        .encode(
            alt.X(
                "num_participants:Q",
                title="participants",
                scale=alt.Scale(type="log", nice=False, padding=12),
                axis=alt.Axis(format="~s", tickCount=5),
            ),
            alt.Y(
                "num_responses:Q",
                title="responses",
                scale=alt.Scale(type="log", nice=False, padding=12),
                axis=alt.Axis(format="~s", tickCount=5),
            ),
            opacity=alt.condition(
                "only_experiment === null || datum.experiment === only_experiment", alt.value(0.8), alt.value(0.15)
            ),
            tooltip=[
                "experiment:N",
                alt.Tooltip("num_participants:Q", format=","),
                alt.Tooltip("num_responses:Q", format=","),
            ],
        )
    )
    return Figure(
        "sizes",
        "Experiments by size",
        f"{len(frame)} experiments, {len(people):,} participants, {people['num_responses'].sum():,} marked responses, scored or not.",
        ("experiments",),
        alt.layer(points).properties(width="container", height=260),
        {"rows": frame},
        ("experiment",),
        picks="experiment",
    )
