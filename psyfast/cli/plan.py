"""`psyfast plan`: what a run would take, before a weight is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, cast

import typer

from psyfast.cli.application import terminal
from psyfast.cli.parameters import (
    DEFAULT_MODEL,
    Adapters,
    Conditions,
    ContextLimit,
    Data,
    DataRevision,
    Json,
    LaneOption,
    Limit,
    MemoryLimit,
    Models,
    NoShare,
    OnBadRowOption,
    OptionsFrom,
    Protocol,
    Revision,
    Seed,
    Studies,
    Subset,
    Threads,
    Weights,
    WindowSlots,
    Workers,
    models,
    names,
)
from psyfast.errors import UsageError

if TYPE_CHECKING:
    from psyfast.config import OnBadRow


def plan(
    data: Data = None,
    model: Models = None,
    adapter: Adapters = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="cpu: this machine, measured; or a GPU by its data sheet: h100, a100, l4 …"
        ),
    ] = "cpu",
    within: Annotated[
        str | None, typer.Option(metavar="TIME", help="Also how many such machines finish in 90s, 30m, 2h, 1.5d.")
    ] = None,
    protocol: Protocol = "exact",
    lane: LaneOption = "bf16",
    condition: Conditions = None,
    study: Studies = None,
    subset: Subset = None,
    limit: Limit = None,
    on_bad_row: OnBadRowOption = "error",
    context_limit: ContextLimit = None,
    threads: Threads = None,
    revision: Revision = None,
    data_revision: DataRevision = None,
    seed: Seed = 0,
    options: OptionsFrom = "data",
    workers: Workers = 0,
    memory_limit: MemoryLimit = None,
    weights: Weights = "auto",
    window_slots: WindowSlots = None,
    no_share: NoShare = False,
    as_json: Json = False,
) -> None:
    """Show the tokens, arithmetic, memory, disk traffic and time that scoring DATA would take; no weights are read."""
    from psyfast.config import ScoreConfig, seconds_of
    from psyfast.devices import device_named
    from psyfast.forecast import forecast
    from psyfast.model.load.locate import with_adapters
    from psyfast.report.forecast_table import forecast_table

    if options not in ("data", "auto"):
        raise UsageError(f"--options is '{options}', expected one of data, auto")
    seconds = None if within is None else seconds_of(within)
    other = None if device == "cpu" else device_named(device)
    config = ScoreConfig(
        models=with_adapters(models(model) or (DEFAULT_MODEL,), models(adapter)),
        sources=tuple(data or []),
        protocol=protocol,
        lane=lane,
        revision=revision,
        data_revision=data_revision,
        conditions=names(condition) or ("plain",),
        studies=names(study),
        subset=subset,
        limit=limit,
        on_bad_row=cast("OnBadRow", on_bad_row),
        context_limit=context_limit,
        options=options,
        share=not no_share,
        memory_limit=memory_limit,
        weights=weights,
        window_slots=window_slots,
        threads=threads,
        num_workers=workers,
        seed=seed,
    )
    found = forecast(config, other)
    machines = [None if seconds is None else one.machines_for(seconds) for one in found]
    if as_json:
        rows = [one.to_dict() | {"machines": count} for one, count in zip(found, machines, strict=True)]
        typer.echo(json.dumps(rows, indent=1))
        return
    console = terminal()
    for one, count in zip(found, machines, strict=True):
        console.print(forecast_table(one.to_dict(), None if count is None else (count, str(within))))
        console.print()
