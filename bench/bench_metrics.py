"""The metrics of many models: writes results of the asked size, computes every table, prints one JSON line.

    python bench/bench_metrics.py --models 100 --responses 3000000 --folder /tmp/metrics-bench

Results: 150 studies, 120 responses a participant, two or three options at each, half of the models the post-trained partners
of the other half; 25 files a model. About 35 bytes a response and model on disk; --distinct N writes the files of N models
only and links those of the others to them, in turn, which spares the disk and lets reads come from the page cache. The check
beforehand: on a small copy the models' means are those that NumPy gets from what was written. peak_rss_bytes is that of this
process while it computes.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from measuring import commit, hardware

from psyfast.metrics.compute import compute_metrics
from psyfast.metrics.config import MetricsConfig
from psyfast.store.run_folder import PartRecord, RunFolder
from psyfast.store.schema import RESPONSES, TRANSCRIPTS, participants_schema, stamped

STUDIES, A_PARTICIPANT, PARTS = 150, 120, 25


def main() -> None:
    args = parse()
    if args.compute:
        print(json.dumps(timed(args.folder, args.pairs)))
        return
    check()
    shutil.rmtree(args.folder, ignore_errors=True)
    started = time.perf_counter()
    write(args.folder / "run", args.models, args.responses, args.distinct)
    written = time.perf_counter() - started
    own = [sys.executable, __file__, "--compute", "--folder", str(args.folder)]
    found = json.loads(subprocess.run(own, capture_output=True, text=True, check=True).stdout)  # a process of its own
    size = sum(path.stat().st_size for path in args.folder.rglob("*.parquet"))
    print(
        json.dumps(
            {
                "benchmark": "metrics",
                "models": args.models,
                "responses": args.responses,
                "distinct": args.distinct or args.models,
                **found,
                "write_seconds": round(written, 1),
                "bytes_on_disk": size,
                "hardware": hardware(),
                "commit": commit(),
                "command": " ".join(sys.argv),
            }
        )
    )
    if not args.keep:
        shutil.rmtree(args.folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--responses", type=int, default=300_000, help="of each model")
    parser.add_argument("--distinct", type=int, help="models that have files of their own; all of them if not given")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "psyfast-bench-metrics")
    parser.add_argument("--keep", action="store_true", help="leave the results there")
    parser.add_argument("--compute", action="store_true", help="only compute, over what --keep left")
    args = parser.parse_args()
    args.pairs = args.folder / "pairs.toml"
    return args


def timed(folder: Path, pairs: Path) -> dict[str, object]:
    started = time.perf_counter()
    metrics = compute_metrics([folder / "run"], MetricsConfig(pairs=pairs))
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = used.ru_utime + used.ru_stime
    peak = used.ru_maxrss * 1024
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_rss_bytes": peak,
        "pairs": len(metrics.tables["pairs"]),
    }


def check() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        written = write(run, 2, 20_000)
        found = compute_metrics([run], MetricsConfig(num_resamples=99, num_flips=99)).tables["models"]
        studies = study_of(20_000)
        expected = [np.mean([nll[studies == study].mean() for study in np.unique(studies)]) for nll in written]
        assert np.allclose(found["nll_nats"], expected, atol=1e-9), (found, expected)


def study_of(num: int) -> np.ndarray:
    return (np.arange(num) // A_PARTICIPANT) % STUDIES


def write(path: Path, num_models: int, num: int, num_distinct: int | None = None) -> list[np.ndarray]:
    """Write a run; returns the NLLs of each model that has files of its own."""
    rng = np.random.default_rng(0)
    run, people = RunFolder(path), -(-num // A_PARTICIPANT)
    person = np.arange(num) // A_PARTICIPANT
    sizes = rng.integers(2, 4, num)
    names = pl.Series([f"study{study:03d}" for study in range(STUDIES)])
    labels = pl.Series([["J", "F"], ["J", "F", "K"]])
    keys = pl.DataFrame(
        {
            "study": names[study_of(num)],
            "experiment": names[study_of(num)],
            "participant": pl.Series(person).cast(pl.String),
            "response_idx": pl.Series(np.arange(num) % A_PARTICIPANT, dtype=pl.Int32),
            "response": pl.Series(["J", "F"])[rng.integers(0, 2, num)],
            "options": labels[sizes - 2],
        }
    )
    path.mkdir(parents=True)
    counts = np.bincount(person)
    heads = keys[np.arange(people) * A_PARTICIPANT].select("study", "experiment", "participant")
    heads = heads.with_columns(num_responses=pl.Series(counts, dtype=pl.Int32), text_sha256=pl.lit("0"))
    save(heads, participants_schema(()), run.participants_path)
    save(heads.clear(), TRANSCRIPTS, run.transcripts_path)
    models = [f"model{idx:03d}" for idx in range(num_models)]
    written = []
    for number, model in enumerate(models):
        if num_distinct is not None and number >= num_distinct:
            link(run, models[number % num_distinct], model)
            continue
        nll = rng.gamma(2.0, 0.5, num) + rng.gamma(4.0, 0.05, people)[person]
        written.append(nll)
        flat = rng.gamma(2.0, 0.5, int(sizes.sum()))
        lists = (
            pl.Series(flat).reshape((-1,)).to_frame("v").with_columns(row=pl.Series(np.repeat(np.arange(num), sizes)))
        )
        option_nlls = lists.group_by("row", maintain_order=True).agg("v")["v"]
        rows = keys.with_columns(nll_nats=pl.Series(nll), is_argmax=pl.Series(nll < 0.7), option_nll_nats=option_nlls)
        write_parts(run, model, rows, people)
    run.write_manifest(
        {
            "status": "complete",
            "models": {model: {"name": model} for model in models},
            "config": {"protocol": "exact", "lane": "bf16", "conditions": ["plain"]},
            "data": {"num_transcripts": people},
        }
    )
    pairs = "".join(f'"{post}" = "{base}"\n' for base, post in zip(models[::2], models[1::2], strict=False))
    (path.parent / "pairs.toml").write_text(f"[pairs.instruction]\n{pairs}")
    return written


def link(run: RunFolder, model: str, other: str) -> None:
    folder = run.part_folder(other, "plain")
    folder.mkdir(parents=True)
    for path in run.part_folder(model, "plain").iterdir():
        (folder / path.name).hardlink_to(path)


def write_parts(run: RunFolder, model: str, rows: pl.DataFrame, people: int) -> None:
    folder = run.part_folder(model, "plain")
    folder.mkdir(parents=True)
    for part in range(PARTS):
        start, stop = people * part // PARTS, people * (part + 1) // PARTS
        record = PartRecord(part, start, stop, 1, 1, 1, 1, {}, {}, {})
        mine = rows[start * A_PARTICIPANT : stop * A_PARTICIPANT]
        save(mine, RESPONSES, folder / f"part-{part:05d}.parquet", {"part": json.dumps(asdict(record))})


def save(frame: pl.DataFrame, schema: object, path: Path, extra: dict[str, str] | None = None) -> None:
    wanted = stamped(schema, extra)
    for name in wanted.names:
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(None).alias(name))
    pq.write_table(frame.select(wanted.names).to_arrow().cast(wanted), path, compression="zstd")


if __name__ == "__main__":
    main()
