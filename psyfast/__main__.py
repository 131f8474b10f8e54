"""`psyfast` and `python -m psyfast`: the command line, loaded where Ctrl-C is answered already."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Entry point: psyfast.cli.main, whose imports take a moment that Ctrl-C may fall into."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored, as under nohup
        signal.signal(signal.SIGINT, _on_interrupt)
    from psyfast import cli

    cli.main()


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    """Leaves at once while modules are loaded: some that are half written in C make other errors of an exception."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            print("psyfast: stopped", file=sys.stderr, flush=True)
            os._exit(1)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
