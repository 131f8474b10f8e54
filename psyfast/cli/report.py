"""`psyfast report`: what finished runs say, as a page to look at."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from psyfast.cli.application import terminal
from psyfast.cli.metrics import AsPublished, BaselineFile, CategoriesFile, GroupBy, Margin, PairsFile, Runs
from psyfast.cli.parameters import Seed
from psyfast.errors import UsageError

_LIBRARIES = {"altair": "altair", "vl_convert": "vl-convert-python"}


def report(
    runs: Runs = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also every figure as PNG, PDF and SVG, every table as CSV and Parquet."),
    ] = None,
    transcripts: Annotated[
        int, typer.Option("--transcripts", metavar="N", help="Transcripts on the page, drawn at random; 0: none.")
    ] = 24,
    as_published: AsPublished = False,
    group_by: GroupBy = "study",
    baseline: BaselineFile = None,
    categories: CategoriesFile = None,
    pairs: PairsFile = None,
    margin: Margin = 0.05,
    seed: Seed = 0,
) -> None:
    """Draw the results of one or several runs: one HTML page that needs no network."""
    if not runs:
        raise UsageError("no run folder was named: give one or several that psyfast score wrote")
    if transcripts < 0:
        raise UsageError(f"--transcripts is {transcripts}, expected 0 or more")
    _require_libraries()
    from psyfast.metrics.config import MetricsConfig
    from psyfast.report.build import build_report
    from psyfast.report.files import require_figures_folder, require_page_path, write_figures, write_page

    config = MetricsConfig(
        group_by=group_by,
        as_published=as_published,
        baseline=baseline,
        categories=categories,
        pairs=pairs,
        margin=margin,
        seed=seed,
    )
    require_page_path(out)
    if figures is not None:
        require_figures_folder(figures)
    built = build_report(runs, config, num_transcripts=transcripts)
    write_page(built, out)
    console = terminal()
    drawn = sum(figure.chart is not None for figure in built.figures)
    console.print(f"Report: {out} ({drawn} figures)", highlight=False, soft_wrap=True, markup=False)
    if figures is not None:
        num_files = len(write_figures(built, figures))
        console.print(
            f"Figures and tables: {figures} ({num_files} files)", highlight=False, soft_wrap=True, markup=False
        )
    for figure in built.figures:
        if figure.chart is None:
            console.print(f"Not drawn: {figure.title}. {figure.missing}", style="dim", highlight=False, markup=False)


def _require_libraries() -> None:
    """UsageError where what draws is not installed."""
    if lacking := [name for module, name in _LIBRARIES.items() if find_spec(module) is None]:
        raise UsageError(
            f"a report needs {' and '.join(lacking)}: pip install {' '.join(lacking)} (psyfast's extra 'report')"
        )
