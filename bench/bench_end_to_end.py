"""psyfast against what a user could take instead, on the same transcripts and the same bf16 weights.

    python bench/bench_end_to_end.py -o results                        # everything that is installed
    python bench/bench_end_to_end.py my_data.jsonl --limit 3 --contenders psyfast-bf16 transformers-bf16-kept -o results
    python bench/bench_end_to_end.py --cases options pairs growth --threads 1 -o results
    python bench/bench_end_to_end.py --shape qwen3-0.6b --limit 2 -o results

`make bench-peers` installs vLLM's CPU backend, OpenVINO and llama.cpp, each into an environment of its own. Every
contender is a process of its own; the rounds are interleaved. Writes end_to_end.json and end_to_end.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end.cases import Case, CaseMaker, read_transcripts, short_transcripts
from end_to_end.contenders import BY_NAME, CONTENDERS, Contender
from end_to_end.gguf_file import write_gguf
from end_to_end.measures import case_facts, errors, option_figures, pair_figures, timings
from end_to_end.models import SHAPES, bf16_folder, random_folder, traits_of
from end_to_end.peaks import Peaks
from end_to_end.rounds import Bench, Run, run_rounds
from end_to_end.tables import markdown
from end_to_end.truth import true_nlls
from measuring import commit, hardware

from psyfast.data.tokenizer import Tokenizer
from psyfast.model.load.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("plain", "lengths", "options", "pairs", "growth")
GROWN_LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def main() -> None:
    args = parse()
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    args.work.mkdir(parents=True, exist_ok=True)
    model = bf16_folder(args.model, args.work)
    if args.shape:
        model = random_folder(args.shape, model, args.work)
    contenders = chosen(args, has_experts=traits_of(model).experts is not None)
    transcripts, described = read_transcripts(args.data, args.limit, args.work)
    cases = make_cases(args, model, transcripts)
    traits = traits_of(model)
    gguf = write_gguf(model, args.work) if any(contender.needs_gguf for contender in contenders) else None
    bench = Bench(model, gguf, args.peers, args.work, cases)
    truth = true_nlls(bench, max(args.threads))
    peaks = Peaks()
    runs = run_rounds(bench, contenders, args.threads, args.repeats, peaks.measure)
    facts = {case.name: case_facts(case, traits) for case in cases}
    rows = timings(runs, facts)
    document: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit(),
        "started": started,
        "hardware": hardware(),
        "system": platform.platform(),
        "model": model.name,
        "transcripts": described,
        "protocol": args.protocol,
        "peak_gflop_per_s": peaks.best,
        "cases": facts,
        "versions": {run.contender: run.result["versions"] for run in runs if run.result},
        "timings": rows,
        "errors": all_errors(runs, cases, truth),
        "pairs": pair_figures(rows),
        "options": option_figures(rows, {case.name: case for case in cases}, traits),
        "failures": {run.contender: run.failure for run in runs if run.failure},
        "runs": [run.to_dict() for run in runs],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "end_to_end.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = markdown(document)
    (args.out / "end_to_end.md").write_text(table, encoding="utf-8")
    print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", nargs="*", metavar="DATA", help="as for psyfast score; else the shared set, or a sample"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of end_to_end.json and end_to_end.md")
    parser.add_argument(
        "--model", default="smollm2-135m-instruct", help="as for psyfast score; made bf16 where it is not"
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights in this shape, with the model's tokenizer")
    parser.add_argument("--protocol", default="paper", choices=["exact", "paper"])
    parser.add_argument("--limit", type=int, help="at most so many transcripts")
    parser.add_argument("--cases", nargs="+", default=["plain"], choices=KINDS)
    parser.add_argument("--contenders", nargs="+", choices=list(BY_NAME), help="default: all that are installed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--grown", type=int, nargs="+", default=GROWN_LENGTHS, help="tokens of the case growth")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="where make bench-peers put them")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "end_to_end", help="models and scratch files")
    return parser.parse_args()


def chosen(args: argparse.Namespace, *, has_experts: bool) -> list[Contender]:
    """The contenders asked for; all that are installed, and differ on the model, where none were."""
    missing = [name for name in args.contenders or () if not BY_NAME[name].is_installed(args.peers)]
    if missing:
        raise SystemExit(
            f"not installed under {args.peers}: {', '.join(missing)}; run make bench-peers, or leave it out"
        )
    if args.contenders:
        return [BY_NAME[name] for name in args.contenders]
    taking_part = [contender for contender in CONTENDERS if has_experts or not contender.for_experts]
    left_out = [contender.name for contender in taking_part if not contender.is_installed(args.peers)]
    if left_out:
        print(f"not installed, left out: {', '.join(left_out)} (make bench-peers)", file=sys.stderr)
    return [contender for contender in taking_part if contender.is_installed(args.peers)]


def make_cases(args: argparse.Namespace, model: Path, transcripts: list) -> list[Case]:
    folder = args.work / "cases"
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(load_tokenizer(str(model)))
    maker = CaseMaker(folder, tokenizer, traits_of(model).max_positions, args.protocol)
    cases: list[Case] = []
    if "plain" in args.cases:
        cases += maker.plain(transcripts)
    if "lengths" in args.cases:
        cases += maker.lengths([*transcripts, *short_transcripts(transcripts)])
    one = max(transcripts[:3], key=lambda transcript: len(transcript.text))
    if "options" in args.cases:
        cases += maker.options(one)
    if "pairs" in args.cases:
        cases += maker.pairs(one)
    if "growth" in args.cases:
        cases += maker.growth(transcripts, args.grown)
    return cases


def all_errors(runs: list[Run], cases: list[Case], truth: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Of each contender's first finished process."""
    firsts: dict[str, Run] = {}
    for run in runs:
        if run.result is not None:
            firsts.setdefault(run.contender, run)
    return [
        errors(run.contender, case, run.nlls[case.name], truth[case.name])
        for run in firsts.values()
        for case in cases
        if case.name in run.nlls and case.name in truth
    ]


if __name__ == "__main__":
    main()
