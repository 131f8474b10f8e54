"""The page: sections, figures, the browser of transcripts, and everything that makes them work, in one HTML text.

Every string that comes from data is escaped: in HTML by html.escape, in the embedded JSON by escapes of <, > and &. A
Content-Security-Policy keeps the browser from asking the network for anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import altair as alt
import vl_convert

from psyfast.report.figure import Figure
from psyfast.report.transcripts import Browser

GENERATOR = '<meta name="generator" content="psyfast report">'
"""What tells a report from other files."""
_CHOICES = {"model": "all models", "condition": None, "experiment": "all experiments"}


@dataclass(frozen=True, eq=False)
class Section:
    """A heading and what stands below it. before, after: HTML around the figures."""

    name: str
    title: str
    figures: tuple[Figure, ...] = ()
    before: str = ""
    after: str = ""


@dataclass(frozen=True, eq=False)
class Page:
    """What the page says. choices: the values of model, condition and experiment that can be chosen.

    comparisons: rows of comparison, model_a, model_b. model, comparison: those shown at first where only one can be.
    """

    title: str
    made_of: str
    made_by: str
    sections: tuple[Section, ...]
    browser: Browser
    choices: Mapping[str, Sequence[str]]
    comparisons: Sequence[Mapping[str, str]]
    model: str
    comparison: str | None


def page_html(page: Page) -> str:
    """The whole page."""
    drawn = [figure for section in page.sections for figure in section.figures if figure.chart is not None]
    data = {
        "figures": {figure.name: _figure_data(figure) for figure in drawn},
        "transcripts": page.browser.transcripts,
        "models": page.choices["model"],
        "conditions": page.choices["condition"],
        "experiments": page.choices["experiment"],
        "comparisons": page.comparisons,
        "model": page.model,
        "comparison": page.comparison,
    }
    return Template(_asset("page.html")).substitute(
        title=escape(page.title),
        css=_asset("page.css"),
        made_of=escape(page.made_of),
        made_by=escape(page.made_by),
        links="\n".join(f'<li><a href="#section-{s.name}">{escape(s.title)}</a></li>' for s in page.sections),
        selects="\n".join(_select(kind, page.choices[kind], every) for kind, every in _CHOICES.items()),
        sections="\n".join(_section(section, page) for section in page.sections),
        data=script_json(data),
        library=_library(),
        script=_asset("page.js"),
    )


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (files("psyfast.report") / "page" / name).read_text(encoding="utf-8")


def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, of the version that Altair writes for."""
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=vegalite_version())
    assert "</script" not in library.lower(), "the script would end inside itself"
    return library


def vegalite_version() -> str:
    """The version of Vega-Lite that Altair writes for, as vl_convert spells it: 6.1."""
    return ".".join(alt.VEGALITE_VERSION.removeprefix("v").split(".")[:2])


def _figure_data(figure: Figure) -> dict[str, Any]:
    return {
        "spec": figure.spec(),
        "follows": figure.follows,
        "defaults": figure.defaults,
        "picks": figure.picks,
    }


def _select(kind: str, values: Sequence[str], every: str | None) -> str:
    options = [f'<option value="">{every}</option>'] if every else []
    options += [f'<option value="{escape(value)}">{escape(value)}</option>' for value in values]
    return f'<label>{kind}<select data-choice="{kind}">{"".join(options)}</select></label>'


def _section(section: Section, page: Page) -> str:
    figures = "\n".join(_figure(figure, page) for figure in section.figures)
    title = f'<h2 id="section-{section.name}">{escape(section.title)}</h2>'
    return f"<section>{title}\n{section.before}\n{figures}\n{section.after}</section>"


def _with_code(text: str) -> str:
    """Escaped, with `words` in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _figure(figure: Figure, page: Page) -> str:
    heading = f"<h3>{escape(figure.title)}</h3>"
    if figure.chart is None:
        return f'<figure id="{figure.name}">{heading}<p class="missing">{_with_code(figure.missing)}</p></figure>'
    tables = ", ".join(f"<code>{escape(name)}</code>" for name in figure.tables)
    select = ""
    if "comparison" in figure.follows:
        select = _select("comparison", [row["comparison"] for row in page.comparisons], None)
    return (
        f'<figure id="{figure.name}">{heading}'
        f"<figcaption>{_with_code(figure.caption)} Tables: {tables}.</figcaption>{select}"
        '<p class="shown" aria-live="polite"></p><div class="chart"></div><div class="tools"></div></figure>'
    )
