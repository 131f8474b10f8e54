"""`psyfast compare`: two models, and no more data than it takes to tell them apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, cast

import typer

from psyfast.cli.application import interruptible, terminal
from psyfast.cli.parameters import (
    Backend,
    ContextLimit,
    DataRevision,
    Device,
    Json,
    LaneOption,
    Limit,
    MemoryLimit,
    OnBadRowOption,
    OptionsFrom,
    Out,
    Protocol,
    Resume,
    Revision,
    Seed,
    Studies,
    Subset,
    Threads,
    Weights,
    Workers,
    names,
)
from psyfast.errors import UsageError

if TYPE_CHECKING:
    from psyfast.config import OnBadRow


def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A model, named as for psyfast score.")],
    post: Annotated[str, typer.Argument(metavar="POST", help="The model that is held against it.")],
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Transcripts, as for psyfast score.")],
    until: Annotated[
        float | None, typer.Option("--until", metavar="NATS", help="Stop once the interval's half-width is below it.")
    ] = None,
    out: Out = None,
    level: Annotated[float, typer.Option(metavar="SHARE", help="Of the interval, at all looks at once.")] = 0.95,
    sign: Annotated[bool, typer.Option("--sign/--no-sign", help="Stop also once the interval excludes 0.")] = True,
    max_participants: Annotated[int | None, typer.Option(metavar="N", help="Score at most so many.")] = None,
    every: Annotated[
        int | None, typer.Option(metavar="N", help="Participants between two looks. [default: one of each study]")
    ] = None,
    seed: Seed = 0,
    protocol: Protocol = "exact",
    lane: LaneOption = "bf16",
    resume: Resume = False,
    study: Studies = None,
    limit: Limit = None,
    on_bad_row: OnBadRowOption = "error",
    context_limit: ContextLimit = None,
    threads: Threads = None,
    device: Device = "cpu",
    backend: Backend = "auto",
    revision: Revision = None,
    data_revision: DataRevision = None,
    options: OptionsFrom = "data",
    condition: Annotated[
        str, typer.Option(metavar="NAME", help="How both models are shown the transcripts, as for psyfast score.")
    ] = "plain",
    subset: Subset = None,
    workers: Workers = 0,
    memory_limit: MemoryLimit = None,
    weights: Weights = "auto",
    as_json: Json = False,
) -> None:
    """Score participants in random order under two models until their difference is known well enough."""
    from psyfast.config import ScoreConfig
    from psyfast.inputs import find_inputs
    from psyfast.metrics.comparison import CompareGoal

    if until is None:
        raise UsageError("no goal was named: give --until NATS, for example --until 0.02")
    if out is None:
        raise UsageError("no folder to write to was named: give -o RUN")
    if options not in ("data", "auto"):
        raise UsageError(f"--options is '{options}', expected one of data, auto")
    goal = CompareGoal(until, level, sign, max_participants, every)
    config = ScoreConfig(
        models=(base, post),
        sources=tuple(data),
        protocol=protocol,
        lane=lane,
        backend=backend,
        device=device,
        revision=revision,
        data_revision=data_revision,
        studies=names(study),
        limit=limit,
        on_bad_row=cast("OnBadRow", on_bad_row),
        context_limit=context_limit,
        options=options,
        conditions=(condition,),
        subset=subset,
        memory_limit=memory_limit,
        weights=weights,
        threads=threads,
        num_workers=workers,
        seed=seed,
    )
    inputs = find_inputs(config, out, resume=resume)  # before torch is loaded: a slip in a name answers at once
    from psyfast.comparison import compare_run
    from psyfast.report.compare_progress import reporting_looks
    from psyfast.report.compare_table import compare_table, notes, verdict
    from psyfast.report.progress import Stopper

    stopper = Stopper()
    with interruptible(), stopper, reporting_looks(stopper.arm) as (on_progress, on_look):
        found = compare_run(inputs, goal, on_progress=on_progress, on_look=on_look, should_stop=stopper.is_asked)
    if as_json:
        typer.echo(json.dumps({"run": str(out), **found.to_dict()}, indent=1, allow_nan=False))
        return
    console = terminal()
    console.print(compare_table(found))
    for line in verdict(found):
        console.print(line, highlight=False)
    for note in notes(found):
        console.print(note, style="dim", highlight=False)
    console.print(f"\nResults: {out}", highlight=False, soft_wrap=True)
