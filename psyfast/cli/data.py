"""`psyfast audit` and `psyfast sample`: transcripts, before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from psyfast.cli.application import terminal
from psyfast.cli.parameters import (
    DEFAULT_MODEL,
    ContextLimit,
    Data,
    Json,
    Limit,
    OnBadRowOption,
    Revision,
    Seed,
    Studies,
    Workers,
    names,
    refuse_others,
)
from psyfast.errors import RunError, UsageError

if TYPE_CHECKING:
    from psyfast.config import OnBadRow
    from psyfast.data.transcripts import ReadOptions


def audit(
    context: typer.Context,
    data: Data = None,
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", "-t", metavar="MODEL", help="A model's name; only its tokenizer is loaded.")
    ] = DEFAULT_MODEL,
    study: Studies = None,
    limit: Limit = None,
    on_bad_row: OnBadRowOption = "error",
    context_limit: ContextLimit = None,
    revision: Revision = None,
    trials: Annotated[bool, typer.Option("--trials", help="Instead: show how texts are cut into trials.")] = False,
    options: Annotated[
        bool, typer.Option("--options", help="Instead: show the choice sets of --options auto, and option letters.")
    ] = False,
    examples: Annotated[int, typer.Option(metavar="N", help="Examples a study and finding.")] = 2,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Show, for each study, what each protocol finds, misses, merges or truncates; or its trials and choice sets."""
    from psyfast.api import audit_transcripts
    from psyfast.data.transcripts import ReadOptions
    from psyfast.report.audit_table import print_audit

    if not data:
        raise UsageError("no transcripts were named: give a file, a folder of studies or a data set id")
    if examples < 0:
        raise UsageError(f"--examples is {examples}, expected 0 or more")
    read = ReadOptions(studies=names(study), limit=limit, on_bad_row=cast("OnBadRow", on_bad_row))
    if trials or options:
        allowed = {"data", "study", "limit", "on_bad_row", "trials", "options", "examples", "as_json"}
        refuse_others(context, allowed, "--trials and --options look at the text alone")
        _audit_text(data, read, examples, trials=trials, options=options, as_json=as_json)
        return
    report = audit_transcripts(
        data,
        tokenizer,
        context_limit=context_limit,
        revision=revision,
        num_examples=examples,
        num_workers=workers,
        read=read,
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_audit(report, terminal())


def _audit_text(
    data: list[str], read: ReadOptions, examples: int, *, trials: bool, options: bool, as_json: bool
) -> None:
    from psyfast.api import audit_trials_and_options
    from psyfast.report.text_audit_table import print_text_audit

    report = audit_trials_and_options(data, num_examples=examples, read=read)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_text_audit(report, terminal(), trials=trials, options=options)


def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write STUDY/prompts.jsonl.")],
    participants: Annotated[int | None, typer.Option(metavar="N", help="Of each task. [default: 4]")] = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also over other files of the same names.")] = False,
) -> None:
    """Write the synthetic sample data: three tasks whose true choice probabilities are known."""
    from psyfast.data.sample import write_sample

    try:
        paths = write_sample(folder, seed=seed, num_participants=participants, overwrite=overwrite)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); name a folder on a disk with space") from error
    for path in paths:
        typer.echo(str(path))
