"""What comes before the first engine call: whole processes of `psyfast score` on one short transcript, and their stages.

    OMP_WAIT_POLICY=passive python bench/bench_startup.py --repeats 5

process: wall and CPU seconds from the fork to the first call of the engine, and of the whole; `load` and `scan` are the
manifest's. Warm: files in the page cache. Cold: the model's and the packages' pages dropped before each run, as far as
no other process maps them. imports: seconds by package under -X importtime, which itself adds some. load: the parts of
opening a model, one after the other (a run overlaps some), in this process. One JSON line each; medians of interleaved
runs. --against FOLDER: warm runs of another checkout with its native module, interleaved with these. Scores may differ from
its in bits (other kernels), so each is held to its own first run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from measuring import commit, hardware, interleaved

import psyfast
from psyfast.model.load.locate import locate
from psyfast.store.reading import compare_runs

MODEL = "smollm2-135m-instruct"
TRANSCRIPT = {"text": "You choose between J and F.\nYou press <<J>>.", "participant": 1}
RUN = """
import json, sys, time
from psyfast import cli, engine

run, started, checkout = engine.Engine.run, float(sys.argv.pop(1)), sys.argv.pop(1)
assert cli.__file__.startswith(checkout), f"{cli.__file__} is not of {checkout}"

def reporting(self, *args, **kwargs):
    print(json.dumps({"wall": time.time() - started, "cpu": time.process_time()}), flush=True)
    engine.Engine.run = run
    return run(self, *args, **kwargs)

engine.Engine.run = reporting
cli.main()
"""
"""`psyfast`, saying when it comes to the engine."""

Sample = dict[str, float]


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="psyfast-bench-") as folder:
        bench = Processes(Path(folder) / "these", args.model)
        other = Processes(Path(folder) / "others", args.model, args.against) if args.against else None
        warm, cold, imports, others = bench.run_all(args.repeats, other)
    emit(args, "process, warm", warm)
    if others:
        emit(args, "process, warm, the other checkout", others, commit(args.against))
    if cold:
        emit(args, "process, cold", cold)
    emit(args, "imports", imports)
    emit(args, "load", load_stages(args))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="FOLDER")
    return parser.parse_args()


class Processes:
    """Runs of the command line on TRANSCRIPT, each into a folder of its own."""

    def __init__(self, folder: Path, model: str, checkout: Path | None = None) -> None:
        """checkout: whose psyfast runs, instead of the one that this benchmark imports."""
        self.folder, self.model = folder, model
        self.checkout = (checkout or Path(psyfast.__file__).parents[1]).resolve()
        folder.mkdir()
        self.data = folder / "one.jsonl"
        self.data.write_text(json.dumps(TRANSCRIPT) + "\n")
        self.num_runs = 0

    def run_all(self, repeats: int, other: Processes | None) -> tuple[list[Sample], ...]:
        """Warm, cold and import samples and warm ones of `other`, one of each in turn, after a run that warms up."""
        warm: list[Sample] = []
        cold: list[Sample] = []
        imports: list[Sample] = []
        others: list[Sample] = []
        for bench in filter(None, (self, other)):
            bench.process()
        for _ in range(repeats):
            warm.append(self.process())
            if other is not None:
                others.append(other.process())
            imports.append(self.imports())
            if drop_page_cache(locate(self.model).path):
                cold.append(self.process())
        return warm, cold, imports, others

    def process(self) -> Sample:
        """One run, measured from outside, from within, and by its manifest."""
        start = time.perf_counter()
        child = self._start(stdout=subprocess.PIPE)
        text, _ = child.communicate()
        wall = time.perf_counter() - start
        manifest = json.loads((self._check(child.returncode) / "manifest.json").read_text())
        first_call = json.loads(text.splitlines()[0])
        return {
            "first_call": first_call["wall"],
            "first_call_cpu": first_call["cpu"],
            "scan": manifest["seconds"]["scan"],
            "load": sum(model["seconds_to_load"] for model in manifest["models"].values()),
            "whole": wall,
        }

    def imports(self) -> Sample:
        """One run under -X importtime."""
        child = self._start("-X", "importtime", stderr=subprocess.PIPE)
        _, text = child.communicate()
        self._check(child.returncode)
        return seconds_by_package(text)

    def _start(
        self, *options: str, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        self.num_runs += 1
        arguments = ["score", self.data, "-m", self.model, "-o", self._folder()]
        command = [sys.executable, *options, "-c", RUN, time.time(), self.checkout, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(self.checkout)}
        return subprocess.Popen(
            list(map(str, command)), stdout=stdout, stderr=stderr, text=True, cwd=self.folder, env=environment
        )

    def _folder(self) -> Path:
        return self.folder / f"run{self.num_runs}"

    def _check(self, returncode: int) -> Path:
        """A run that failed, or gave other bits than the first, is not timed."""
        out = self._folder()
        if returncode != 0:
            raise SystemExit(f"psyfast score ended with {returncode}: not timed")
        if self.num_runs > 1 and not compare_runs(self.folder / "run1", out).same_bits:
            raise SystemExit("two runs of the same transcript differ: not timed")
        return out


def seconds_by_package(importtime: str) -> Sample:
    """Self times of -X importtime, summed by top-level package: those above 20 ms, and the rest as one."""
    totals: Counter[str] = Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", importtime, re.MULTILINE):
        totals[name.split(".")[0]] += int(own)
    large = {name: micros / 1e6 for name, micros in totals.most_common() if micros > 20_000}
    return {"total": sum(totals.values()) / 1e6, **large}


def drop_page_cache(model: Path) -> bool:
    """Ask the kernel to forget the pages of the model and of the installed packages; False where it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return False
    packages = Path(sysconfig.get_path("platlib"))
    for path in [model, *(path for path in packages.rglob("*") if path.is_file())]:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    return True


def load_stages(args: argparse.Namespace) -> list[Sample]:
    """Seconds of each part of opening a model; imported here, so that a cold run finds nothing mapped."""
    from psyfast.data.tokenizer import Tokenizer
    from psyfast.model.load.model import file_hashes, load_model, open_model
    from psyfast.model.load.tokenizer import load_tokenizer
    from psyfast.ops.records import Lane
    from psyfast.ops.registry import resolve

    located, operators = locate(args.model), resolve("auto", "cpu", Lane.BF16)
    _, files = open_model(located)

    def read_tensors() -> None:
        for name in files.shapes:
            files.read(name)

    calls: dict[str, Callable[[], object]] = {
        "open": lambda: open_model(located),
        "read_tensors": read_tensors,
        "open_read_pack": lambda: load_model(located, operators),
        "tokenizer": lambda: Tokenizer(load_tokenizer(located)),
        "sha256": lambda: file_hashes(files.files),
    }
    samples = interleaved(calls, args.repeats)
    return [dict(zip(samples, values, strict=True)) for values in zip(*samples.values(), strict=True)]


def emit(args: argparse.Namespace, case: str, samples: list[Sample], of_commit: str | None = None) -> None:
    names = [name for name in samples[0] if all(name in sample for sample in samples)]
    line = {
        "operator": "startup",
        "case": case,
        "model": args.model,
        "median_s": {name: round(statistics.median(sample[name] for sample in samples), 3) for name in names},
        "min_s": {name: round(min(sample[name] for sample in samples), 3) for name in names},
        "repeats": args.repeats,
        "load_average": round(os.getloadavg()[0], 1),
        "hardware": hardware(),
        "commit": of_commit or commit(),
        "command": " ".join(["python", *sys.argv]),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
