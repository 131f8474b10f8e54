"""From run folders to a report: the figures in their sections, the page, and the files of figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from psyfast import __version__
from psyfast.errors import RunError
from psyfast.metrics.compute import Metrics, compute_metrics
from psyfast.metrics.config import MetricsConfig
from psyfast.metrics.responses import index_responses
from psyfast.metrics.results import open_results
from psyfast.report import sessions, study_figures
from psyfast.report.accuracy_figures import accuracy_figures
from psyfast.report.condition_figures import condition_figures
from psyfast.report.figure import Figure
from psyfast.report.findings import Findings
from psyfast.report.fit_figures import fit_figures
from psyfast.report.forest_figures import forest_figures
from psyfast.report.html_page import Page, Section
from psyfast.report.names import harmless
from psyfast.report.participant_figures import participant_figures
from psyfast.report.post_training_figures import post_training_figures
from psyfast.report.session_figures import session_figures
from psyfast.report.transcripts import FULL_TEXT, Browser, choose_transcripts
from psyfast.report.words import counted


@dataclass(frozen=True, eq=False)
class Report:
    """figures: in the page's order. metrics: with the tables that only the report computes beside its own."""

    page: Page
    figures: tuple[Figure, ...]
    metrics: Metrics


def build_report(runs: Sequence[Path], config: MetricsConfig | None = None, *, num_transcripts: int = 24) -> Report:
    """Everything that a report shows of finished runs; what is drawn at random has the seed of `config`.

    Raises RunError, DataError and UsageError as compute_metrics does, and RunError where no response was scored or a
    run's texts are not those of its participants.
    """
    config = config or MetricsConfig()
    metrics = compute_metrics(runs, config)
    results = open_results(runs)
    findings = Findings(metrics, results, index_responses(results, config.group_by))
    if findings.models.is_empty():
        raise RunError(f"{runs[0]}: no response has an NLL, so that there is nothing to report; the flags say why")
    curves, times = sessions.curves(findings), sessions.reaction_times(findings)
    people, fields = study_figures.read_people(findings)
    browser = choose_transcripts(findings, num_transcripts, config.seed)
    data_figures = study_figures.study_figures(findings, people, fields)
    sections = _sections(findings, session_figures(findings, curves, times), data_figures, browser)
    figures = tuple(figure for section in sections for figure in section.figures)
    own = {
        "sessions": curves,
        "reaction_times": times,
        "metadata": study_figures.coverage_table(people, fields),
    }
    page = _page(findings, sections, browser, figures)
    return Report(page, figures, replace(metrics, tables={**metrics.tables, **own}))


def _sections(
    findings: Findings, of_sessions: tuple[Figure, ...], of_data: tuple[Figure, ...], browser: Browser
) -> tuple[Section, ...]:
    nll, by_size, baselines = fit_figures(findings)
    by_type, by_generation, by_category = post_training_figures(findings)
    forest, forest_nll = forest_figures(findings)
    return (
        Section("fit", "How well do models predict people?", (nll, by_size, baselines), before=_tiles(findings)),
        Section(
            "post-training",
            "Does post-training make models less human-like?",
            (by_type, by_generation, by_category, forest),
        ),
        Section("conditions", "Do a persona and a chat template help?", condition_figures(findings)),
        Section("right", "How often are models right, and how sure?", accuracy_figures(findings)),
        Section("where", "Where is the loss?", (forest_nll, *of_sessions)),
        Section("who", "Who is predicted badly?", participant_figures(findings)),
        Section("transcripts", "Transcripts", after=_browser_html(browser)),
        Section("data", "What the runs hold", of_data),
        Section("notes", "Notes", after=_notes_html(findings)),
    )


def _tiles(findings: Findings) -> str:
    of_condition = findings.models.filter("is_default_condition")
    tiles = {
        "models": len(findings.results.models),
        "conditions": len(findings.conditions),
        "experiments": len(findings.index.groups),
        "participants": findings.index.num_participants,
        "marked responses": findings.index.num_responses,
        "scored by a model": int(of_condition["num_scored"].max() or 0),  # type: ignore[arg-type]
    }
    each = "".join(f"<div><dt>{name}</dt><dd>{count:,}</dd></div>" for name, count in tiles.items())
    return f'<dl class="tiles">{each}</dl>'


def _browser_html(browser: Browser) -> str:
    if browser.missing:
        return f'<p class="missing">{escape(browser.missing)}</p>'
    shown, total = len(browser.transcripts), browser.num_participants
    return (
        f'<div id="browser"><p>{shown:,} of {total:,} transcripts, drawn at random over the experiments (seed in the notes). '
        "Every response is coloured by its NLL under the model and condition chosen above: "
        '0 <span class="scale" style="background:linear-gradient(90deg,#fff,rgb(230 115 30))"></span> '
        f"{FULL_TEXT}. Dotted: not scored.</p>"
        '<div class="row"><label>transcript<select id="transcript-choice"></select></label>'
        '<label class="tick"><input type="checkbox" id="transcript-numbers"> show NLLs</label></div>'
        '<p id="transcript-state" class="shown" aria-live="polite"></p>'
        '<div id="transcript" dir="auto" tabindex="0" role="region" aria-label="Transcript"></div></div>'
        f'<p id="browser-in-print" hidden>{shown:,} of {total:,} transcripts are on the page as a screen shows it.</p>'
    )


def _notes_html(findings: Findings) -> str:
    config, metrics = findings.metrics.config, findings.metrics
    notes = [
        "An experiment is "
        + ("a study." if config.group_by == "study" else f"a value of the column {config.group_by}."),
        f"Protocol {metrics.protocol}, lane {metrics.lane}; {'aggregated as the study does' if config.as_published else 'paired figures over the responses that both sides scored'}.",
        f"Seed of all resampling and of the choice of transcripts: {config.seed}.",
        "Names are shown without control characters, long ones with their middle left out; the tables have them as they are.",
        *metrics.notes,
    ]
    runs = [f"Run: {harmless(str(run))}" for run in metrics.runs]
    return f'<ul id="notes-list">{"".join(f"<li>{escape(note)}</li>" for note in (*notes, *runs))}</ul>'


def _page(findings: Findings, sections: tuple[Section, ...], browser: Browser, figures: Sequence[Figure]) -> Page:
    forest = next(figure for figure in figures if figure.name == "forest")
    comparisons: list[dict[str, str]] = []
    if forest.chart is not None:
        kept = forest.data["rows"].select("comparison", "model_a", "model_b").unique(maintain_order=True)
        comparisons = kept.to_dicts()
    num_models, num_runs = len(findings.results.models), len(findings.results.runs)
    return Page(
        title="How human are these models?",
        made_of=f"{counted(num_models, 'model')} from {counted(num_runs, 'run')} of psyfast, "
        f"protocol {findings.metrics.protocol}, lane {findings.metrics.lane}"
        + (", aggregated as published" if findings.metrics.config.as_published else ""),
        made_by=f"psyfast {__version__}",
        sections=sections,
        browser=browser,
        choices={
            "model": sorted(findings.model_names.values()),
            "condition": findings.conditions,
            "experiment": list(findings.experiment_names.values()),
        },
        comparisons=comparisons,
        model=findings.default_model,
        comparison=forest.defaults.get("comparison"),
    )
