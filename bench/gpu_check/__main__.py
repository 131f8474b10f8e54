"""`python3 -m bench.gpu_check`: every part in turn, a line as each ends, the tables last. Exit code 3 without a GPU."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from bench.gpu_check import building, machine, report
from bench.gpu_check.tasks import Runner
from bench.measuring import commit

NO_GPU, FAILED, UNUSABLE = 3, 1, 2


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python3 -m bench.gpu_check", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("build/gpu-check"), help="folder of the report and the build"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the random inputs; by default a new one each time")
    parser.add_argument("--minutes", type=float, default=7.5, help="after which no task goes on")
    parser.add_argument("--parts", nargs="+", choices=report.PARTS[2:], default=report.PARTS[2:], help="default: all")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """The exit code: 0 all passed, 1 something failed, 2 torch is missing, 3 no GPU."""
    options, started = parse(arguments), time.monotonic()
    if find_spec("torch") is None:
        print(f"torch is not installed for {sys.executable}: gpu-check needs torch, numpy, and Triton or nvcc")
        return UNUSABLE
    why = machine.why_no_gpu()
    if why is not None:
        print(why)
        return NO_GPU
    from bench.gpu_check.check import Check

    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    check = Check(Runner(options.output.resolve(), started + 60 * options.minutes), machine.facts(), seed)
    check.run(set(options.parts))
    document = {
        "command": " ".join(["python3 -m bench.gpu_check", *arguments]),
        "commit": commit(building.ROOT) if shutil.which("git") else "none",
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": time.monotonic() - started,
        "seed": seed,
        "machine": check.machine,
        "ceilings": check.ceilings,
        "notes": check.notes,
        "outcomes": [outcome.to_dict() for outcome in check.runner.outcomes],
    }
    written = report.write(document, check.runner.folder)
    print(f"\n{report.last_tables(document)}\n\nreport: {', '.join(map(str, written))}")
    return FAILED if any(outcome.failed for outcome in check.runner.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
