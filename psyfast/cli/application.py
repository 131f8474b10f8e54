"""The application that the commands belong to: what holds for all of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from psyfast import __version__
from psyfast.errors import RunInterruptedError, UsageError


@contextmanager
def interruptible(
    message: str = "stopped; what was written is kept, and --resume goes on from there",
) -> Iterator[None]:
    """Ctrl-C, where nothing is worth waiting for, as one line and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunInterruptedError(message) from None


class Commands(TyperGroup):
    """All commands. Ctrl-C leaves them as our own error: typer would exit with 130, without a word."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the command's arguments."""
        with interruptible("stopped"):
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with interruptible("stopped; a run that was begun goes on with --resume"):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="Score human responses under causal language models, exactly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"psyfast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    _set_log_level()


def _set_log_level() -> None:
    """PSYFAST_LOG sets the level of messages on standard error; a bad value raises."""
    level = os.environ.get("PSYFAST_LOG", "warning").upper()
    known = ("DEBUG", "INFO", "WARNING", "ERROR")
    if level not in known:
        raise UsageError(f"PSYFAST_LOG='{level.lower()}' is not a level: use one of {', '.join(known).lower()}")
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def terminal() -> Any:
    """Where tables are printed: rich's console on standard output."""
    from rich.console import Console

    return Console()
