"""`psyfast metrics` and `psyfast pairs`: what finished runs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from psyfast.cli.application import terminal
from psyfast.cli.parameters import Json, Seed
from psyfast.errors import UsageError

Runs = Annotated[list[Path] | None, typer.Argument(metavar="RUN...", help="Finished run folders.")]
GroupBy = Annotated[
    str, typer.Option("--group-by", metavar="COLUMN", help="Column of participants.parquet that makes an experiment.")
]
AsPublished = Annotated[bool, typer.Option("--as-published", help="Aggregate as the Psych-201 study does.")]
BaselineFile = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE", help="Parquet file of a model of your own: the key's columns and nll_nats."
    ),
]
CategoriesFile = Annotated[
    Path | None, typer.Option("--categories", metavar="FILE", help="CSV of experiments and their categories.")
]
Margin = Annotated[
    float, typer.Option("--margin", metavar="D", help="Of the equivalence test for personas, in units of d.")
]
PairsFile = Annotated[Path | None, typer.Option("--pairs", metavar="FILE", help="TOML file of more pairs and models.")]


def metrics(
    runs: Runs = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Write every table there, as CSV and Parquet.")
    ] = None,
    as_published: AsPublished = False,
    group_by: GroupBy = "study",
    baseline: BaselineFile = None,
    categories: CategoriesFile = None,
    pairs: PairsFile = None,
    margin: Margin = 0.05,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compute scores, effect sizes and intervals from the results of one or several runs."""
    from psyfast.metrics.compute import compute_metrics
    from psyfast.metrics.config import MetricsConfig
    from psyfast.metrics.write import as_document, require_usable, write_tables
    from psyfast.report.metrics_table import print_metrics

    if not runs:
        raise UsageError("no run folder was named: give one or several that psyfast score wrote")
    config = MetricsConfig(
        group_by=group_by,
        as_published=as_published,
        baseline=baseline,
        categories=categories,
        pairs=pairs,
        margin=margin,
        seed=seed,
    )
    if out is not None:
        require_usable(out)
    computed = compute_metrics(runs, config)
    written = write_tables(computed, out) if out is not None else ()
    if as_json:
        typer.echo(json.dumps(as_document(computed), indent=1, ensure_ascii=False, allow_nan=False))
        return
    console = terminal()
    print_metrics(computed, console)
    if written:
        console.print(f"\nTables: {out} ({len(written)} files)", highlight=False, soft_wrap=True)


def pairs(
    file: PairsFile = None,
    models: Annotated[bool, typer.Option("--models", help="Show the models instead of the pairs.")] = False,
    as_json: Json = False,
) -> None:
    """Show the study's base and post-trained pairs and its models, and those of a file of your own."""
    from psyfast.metrics.pairs import load_pairs
    from psyfast.report.pairs_table import model_table, pair_document, pair_table

    known = load_pairs(file)
    if as_json:
        typer.echo(json.dumps(pair_document(known), indent=1, ensure_ascii=False))
        return
    terminal().print(model_table(known) if models else pair_table(known))
