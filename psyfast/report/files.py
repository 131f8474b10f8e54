"""The report on disk: the page, each figure as PNG, PDF and SVG, each table as CSV and Parquet. No browser is needed."""

from __future__ import annotations

from pathlib import Path

import vl_convert

from psyfast.errors import RunError
from psyfast.metrics.write import write_tables
from psyfast.report.build import Report
from psyfast.report.figure import Figure
from psyfast.report.html_page import GENERATOR, page_html, vegalite_version
from psyfast.store.atomic import whole_file

_PNG_SCALE = 2.0


def require_page_path(path: Path) -> None:
    """RunError, before anything is computed, if the page cannot go there: a report is replaced, nothing else is."""
    if path.is_dir():
        raise RunError(f"{path}: is a folder; give -o a file, such as {path / 'report.html'}")
    if path.exists():
        try:
            head = path.read_bytes()[:4000]
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error}); give -o another name") from error
        if GENERATOR.encode() not in head:
            raise RunError(f"{path}: is there and is no report of psyfast; give -o another name, or remove it")


def require_figures_folder(folder: Path) -> None:
    """RunError, before anything is computed, if figures and tables cannot go there."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; give --figures a folder")
    if (folder / "manifest.json").exists():
        raise RunError(f"{folder}: is the folder of a run; give --figures another one, such as {folder / 'figures'}")


def write_page(report: Report, path: Path) -> None:
    """Write the page, whole or not at all."""
    require_page_path(path)
    text = page_html(report.page)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_figures(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write NAME.png, NAME.pdf, NAME.svg of every figure that is drawn, their captions, NAME.csv, NAME.parquet of every
    table; returns the paths.
    """
    require_figures_folder(folder)
    drawn = [figure for figure in report.figures if figure.chart is not None]
    written = [path for figure in drawn for path in _write_figure(figure, folder)]
    captions = folder / "captions.txt"
    with whole_file(captions) as temporary:
        temporary.write_text("\n".join(map(_caption, drawn)), encoding="utf-8")
    return (*written, captions, *write_tables(report.metrics, folder))


def _caption(figure: Figure) -> str:
    return f"{figure.name}: {figure.title}\n{figure.caption}\nTables: {', '.join(figure.tables)}\n"


def _write_figure(figure: Figure, folder: Path) -> list[Path]:
    spec, version = figure.static_spec(), vegalite_version()
    made = {
        "svg": vl_convert.vegalite_to_svg(spec, vl_version=version).encode(),
        "png": vl_convert.vegalite_to_png(spec, vl_version=version, scale=_PNG_SCALE),
        "pdf": vl_convert.vegalite_to_pdf(spec, vl_version=version),
    }
    paths = []
    for suffix, content in made.items():
        path = folder / f"{figure.name}.{suffix}"
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        paths.append(path)
    return paths
