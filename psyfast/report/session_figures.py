"""Where the loss is along a session, of models and of people."""

from __future__ import annotations

import altair as alt
import polars as pl

from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.fit_figures import NEEDS_OPTIONS
from psyfast.report.sessions import ALL
from psyfast.report.style import chosen, highlighted
from psyfast.report.words import counted

_X_TITLE = "tenth of the session (by responses)"
_BANDS = (
    "Bands: ± 1 standard error of the change against the session's own mean, over experiments (over participants, where "
    "one experiment is shown)."
)
_MAX_BANDS, _MAX_ROWS = 4, 30_000
_TOO_SHORT = "No participant has a scored response in each tenth of a session of 10 responses or more."


def session_figures(findings: Findings, found: pl.DataFrame, times: pl.DataFrame) -> tuple[Figure, ...]:
    """The figures of this file, in the page's order, from what `sessions` computes."""
    return (
        _curve(findings, found, "nll_nats", "learning", "NLL along the session", "NLL, nats a response", _TOO_SHORT),
        _curve(
            findings,
            found,
            "agreement",
            "learning-agreement",
            "Responses that the model holds most probable, along the session",
            "share of responses",
            f"No participant has a choice set in each tenth of a session. {NEEDS_OPTIONS}",
        ),
        _times(findings.shown(times)),
    )


def _curve(findings: Findings, found: pl.DataFrame, measure: str, name: str, title: str, y: str, needs: str) -> Figure:
    frame = findings.shown(found.filter(measure=measure))
    if frame.is_empty():
        return Figure(name, title, missing=needs)
    few = len(frame) <= _MAX_ROWS
    frame = frame if few else frame.filter(experiment=ALL)
    frame = findings.coloured(findings.with_defaults(frame)).with_columns(
        pl.col("tenth") + 1, is_default_experiment=pl.col("experiment") == ALL
    )
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen("condition")).transform_filter(chosen("experiment"))
    shared = {"color": findings.colour(), "detail": "model:N"}
    axis = alt.Axis(format="%") if measure == "agreement" else alt.Axis()
    layers = [
        base.mark_line(point=alt.OverlayMarkDef(size=35)).encode(
            _x(),
            alt.Y("value:Q", title=y, scale=alt.Scale(zero=False), axis=axis),
            opacity=highlighted(among=len(findings.results.models)),
            tooltip=["model:N", "experiment:N", "tenth:Q", alt.Tooltip("value:Q", format=".3f"), *_NUMBERS],
            **shared,
        )
    ]
    if len(findings.results.models) <= _MAX_BANDS:
        band = base.transform_filter("only_model === null || datum.model === only_model").mark_area(opacity=0.13)
        fill = alt.Fill("colour:N", scale=findings.colour_scale(), legend=None)
        layers.insert(0, band.encode(_x(), alt.Y("low:Q", title=y), fill, y2="high:Q", detail="model:N"))
    num = _shown_numbers(frame.filter("is_default_condition"))
    what = (
        "Mean over participants of their mean NLL in each tenth of their responses"
        if measure == "nll_nats"
        else "Share of responses that are the most probable option of their set: how far people do what the model expects"
    )
    return Figure(
        name,
        title,
        f"{what}; for all experiments the unweighted mean over them ({num}). The same people stand behind every point. "
        + (_BANDS if len(findings.results.models) <= _MAX_BANDS else "")
        + ("" if few else " Too many for curves by experiment."),
        ("sessions",),
        alt.layer(*layers).properties(width="container", height=300),
        {"rows": frame},
        ("model", "condition", "experiment") if few else ("model", "condition"),
    )


def _x() -> alt.X:
    return alt.X(
        "tenth:Q",
        title=_X_TITLE,
        axis=alt.Axis(tickCount=10, format="d", grid=False),
        scale=alt.Scale(domain=[1, 10], nice=False),
    )


_NUMBERS = [alt.Tooltip("num_participants:Q", format=","), "num_experiments:Q"]


def _shown_numbers(frame: pl.DataFrame) -> str:
    overall = frame.filter(experiment=ALL)
    if overall.is_empty():
        return "none"
    num_experiments, num_people = overall.select(pl.col("num_experiments", "num_participants").max()).row(0)
    return f"{counted(num_experiments, 'experiment')}, {counted(num_people, 'participant')}"


def _times(frame: pl.DataFrame) -> Figure:
    name, title = "learning-times", "Reaction times along the session"
    if frame.is_empty():
        needs = "No participant has reaction times in each tenth of a session: give the data a field `RTs` (ms, one a response)."
        return Figure(name, title, missing=needs)
    frame = frame.with_columns(pl.col("tenth") + 1, is_default_experiment=pl.col("experiment") == ALL)
    base = alt.Chart(alt.NamedData("rows")).transform_filter(chosen("experiment"))
    y = alt.Y(
        "value:Q",
        title="of the session's median (logarithmic)",
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format="%"),
    )
    band = base.mark_area(opacity=0.13, color="#333333").encode(_x(), y="low:Q", y2="high:Q")
    line = base.mark_line(color="#333333", point=alt.OverlayMarkDef(color="#333333", size=35)).encode(
        _x(), y, tooltip=["experiment:N", "tenth:Q", alt.Tooltip("value:Q", format=".1%"), *_NUMBERS]
    )
    return Figure(
        name,
        title,
        "People, without any model: a participant's median reaction time in each tenth over that of the whole session, "
        f"geometric mean over participants; for all experiments the geometric mean over them ({_shown_numbers(frame)}). Band: ± 1 standard error.",
        ("reaction_times",),
        alt.layer(band, line).properties(width="container", height=240),
        {"rows": frame},
        ("experiment",),
    )
