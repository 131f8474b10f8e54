"""The command line: `psyfast score | plan | compare | audit | metrics | report | pairs | sample | models | doctor`.

Heavy imports stand inside the commands, so that --help and errors of usage answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer

from psyfast.cli.application import app
from psyfast.cli.compare import compare
from psyfast.cli.data import audit, sample
from psyfast.cli.doctor import doctor
from psyfast.cli.metrics import metrics, pairs
from psyfast.cli.models import models
from psyfast.cli.plan import plan
from psyfast.cli.report import report
from psyfast.cli.score import score
from psyfast.errors import PsyfastError

for command in (score, plan, compare, audit, metrics, report, pairs, sample, models, doctor):  # as --help lists them
    app.command()(command)


def main() -> None:
    """Entry point: 0 done, 2 bad usage or bad input, 1 anything else."""
    # Read once, when torch is loaded: threads that wait for work must not spin where other programs want the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without R² gets R?, not a traceback
    try:
        app()
    except PsyfastError as error:
        typer.echo(f"psyfast: {error}", err=True)
        if isinstance(error.__context__, KeyboardInterrupt):
            _leave_interrupted()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # outside of any command
        typer.echo("psyfast: stopped", err=True)
        _leave_interrupted()
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # standard output on a full disk, say
        typer.echo(f"psyfast: {error}", err=True)
        sys.exit(1)


def _leave_interrupted() -> NoReturn:
    """Exit with 1, at once: after Ctrl-C inside generated code (a dataclass being made) Python's own exit would be
    that of a process killed by the signal.
    """
    sys.stdout.flush()
    os._exit(1)
