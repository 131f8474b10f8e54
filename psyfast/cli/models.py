"""`psyfast models`: which families load, and what a model is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from psyfast.cli.application import terminal
from psyfast.cli.parameters import Json, Revision


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="An alias, a folder, a .gguf file or a hub id.")
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """List the families that load; or show what MODEL is, and why it does not load where it does not (exit code 2)."""
    from psyfast.catalogue import describe_model, families, families_table, model_table
    from psyfast.errors import UsageError

    if model is None:
        if revision is not None:
            raise UsageError(f"--revision {revision} is of a model, and none was named; name one, or leave it out")
        console = terminal()
        typer.echo(json.dumps(families(), indent=1)) if as_json else console.print(families_table(console.width))
        return
    found = describe_model(model, revision)
    typer.echo(json.dumps(found, indent=1)) if as_json else terminal().print(model_table(found))
    if found["why_not"] is not None:
        raise typer.Exit(2)
