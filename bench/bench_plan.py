"""The planner: checks it against the reference in Python, then times, then prints one JSON line a case.

    python bench/bench_plan.py --tokens 1000000

transcripts: of 10,000 tokens, 40 scored positions each and 4 options of 2 tokens at each. prefixes: growing prefixes of
one 4,000-token sequence, the last 8 tokens scored, as a harness asks that makes each response a request of its own.
short: requests of 50 tokens. Times are of `plan_batch` from Request records to numpy arrays; `windows` is the same
requests one by one through windows of --window-slots, all of them planned; `gpu_tiles` checks the whole batch's tables
and divides them into the GPU attentions' tiles of 128 rows. --reference also times the Python planner.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from measuring import commit, hardware, interleaved

from psyfast.ops.gpu.checks import HostTables, check_tables
from psyfast.ops.gpu.tiles import plan_tiles
from psyfast.plan.batch import Branch, Plan, Request, plan_batch
from psyfast.plan.native import NativeBuilder
from psyfast.plan.reference import ReferenceBuilder
from psyfast.plan.windows import DEFAULT_WINDOW_SLOTS, windows

VOCAB = 50_000
CHECKED_TOKENS = 30_000


def main() -> None:
    args = parse()
    for name, make in CASES.items():
        check(name, make(CHECKED_TOKENS))
        print(json.dumps(case(args, name, make(args.tokens))), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of all requests of a case together, about")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--window-slots", type=int, default=DEFAULT_WINDOW_SLOTS)
    parser.add_argument("--reference", action="store_true", help="also time the planner in Python, once")
    return parser.parse_args()


def transcripts(num_tokens: int) -> list[Request]:
    rng = np.random.default_rng(0)
    instructions = rng.integers(0, VOCAB, 500)
    requests = []
    for _ in range(max(2, num_tokens // 10_000)):
        ids = np.concatenate([instructions, rng.integers(0, VOCAB, 9_500)])
        positions = np.arange(40) * 230 + 700
        options = [(int(p), rng.integers(0, VOCAB, 2)) for p in positions for _ in range(4)]
        requests.append(Request(ids, positions, tuple(Branch(p, option, p, p + 2) for p, option in options)))
    return requests


def prefixes(num_tokens: int) -> list[Request]:
    num = max(2, num_tokens // 2_000)
    ids = np.random.default_rng(1).integers(0, VOCAB, 4_000)
    stops = np.linspace(4_000 / num, 4_000, num).astype(int)
    return [Request(ids[:stop], np.arange(max(1, stop - 8), stop)) for stop in stops.tolist()]


def short(num_tokens: int) -> list[Request]:
    rng = np.random.default_rng(2)
    return [Request(rng.integers(0, VOCAB, 50), np.arange(45, 50)) for _ in range(num_tokens // 50)]


CASES: dict[str, Callable[[int], list[Request]]] = {"transcripts": transcripts, "prefixes": prefixes, "short": short}


def case(args: argparse.Namespace, name: str, requests: list[Request]) -> dict[str, object]:
    calls: dict[str, Callable[[], object]] = {
        "plan_batch": lambda: plan_batch(requests),
        "plan_batch_unshared": lambda: plan_batch(requests, share=False),
        "windows": lambda: [window.plan() for window in windows(requests, lambda r: (r,), args.window_slots)],
    }
    if name == "transcripts":
        del calls["plan_batch_unshared"]  # 80 million tokens: every option with a transcript of its own
    batch = plan_batch(requests).batch
    tables = HostTables(
        batch.positions_T, batch.pages.qo_indptr, batch.pages.kv_indptr, batch.pages.kv_indices, batch.pages.num_pages
    )
    calls["gpu_tiles"] = lambda: (check_tables(tables), plan_tiles(tables, 128, 1, None))
    samples = interleaved(calls, args.repeats)
    median = {call: statistics.median(times) for call, times in samples.items()}
    quartiles = statistics.quantiles(samples["plan_batch"], n=4)
    num_tokens = sum(len(request.ids) for request in requests)
    line: dict[str, object] = {
        "operator": "plan",
        "case": name,
        "requests": len(requests),
        "branches": sum(len(request.branches) for request in requests),
        "tokens": num_tokens,
        "unique_tokens": len(batch.token_ids_T),
        "pages": batch.pages.num_pages,
        "segments": len(batch.pages.first_position),
        "median_ms": {call: round(seconds * 1e3, 1) for call, seconds in median.items()},
        "min_ms": {call: round(min(times) * 1e3, 1) for call, times in samples.items()},
        "spread": round((quartiles[2] - quartiles[0]) / quartiles[1], 3),  # interquartile range over the median
        "tokens_per_s": round(num_tokens / median["plan_batch"]),
        "repeats": args.repeats,
        "hardware": hardware(),
        "numpy": np.__version__,
        "commit": commit(),
        "command": " ".join(["python", *sys.argv]),
    }
    if args.reference:
        start = time.perf_counter()
        plan_by(ReferenceBuilder(), requests)
        seconds = time.perf_counter() - start
        line["reference_ms"] = round(seconds * 1e3, 1)
        line["ratio_to_reference"] = round(seconds / median["plan_batch"], 1)
    return line


def check(name: str, requests: list[Request]) -> None:
    """A planner that differs from the reference in any array is not timed."""
    for share in (True, False):
        lot = requests if share or name != "transcripts" else [requests[0]]
        native, reference = (plan_by(make(share=share), lot) for make in (NativeBuilder, ReferenceBuilder))
        np.testing.assert_equal(asdict(native), asdict(reference))


def plan_by(builder: NativeBuilder | ReferenceBuilder, requests: list[Request]) -> Plan:
    builder.add(requests)
    return builder.finish()


if __name__ == "__main__":
    main()
