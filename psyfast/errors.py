"""The errors that users meet: a closed family, one sentence each (what, got, expected, mend).

Everything that a user can get wrong raises one of these; our own invariants are `assert`s.
"""

from __future__ import annotations


class PsyfastError(Exception):
    """Base of every error that psyfast raises for its users.

    `exit_code` is what the command line exits with: 2 for bad usage or bad input, 1 for anything else.
    """

    exit_code = 1


class UsageError(PsyfastError):
    """An argument or a combination of arguments that cannot be meant."""

    exit_code = 2


class DataError(PsyfastError):
    """A transcript source that cannot be read as it stands; the message names file, line and field."""

    exit_code = 2


class ModelError(PsyfastError):
    """A model, weight file or tokenizer that cannot be loaded."""

    exit_code = 2


class RunError(PsyfastError):
    """A run folder that cannot be written, resumed or compared."""

    exit_code = 2


class BackendError(PsyfastError):
    """A backend, ISA level or device that this machine does not have, or an operator's bad argument."""

    exit_code = 2


class RequestError(PsyfastError):
    """Token ids, positions or branches that cannot be scored as they stand; the message names the request."""

    exit_code = 2


class RunInterruptedError(PsyfastError):
    """A run that was asked to stop and did, after the part at hand; the message says how to go on."""
