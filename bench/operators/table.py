"""The Markdown table of a JSON file that the operator benchmarks wrote.

python bench/operators/table.py build/bench/operators.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shapes import SHAPES

HEAD = ("operator", "shape", "rows", "lane", "level", "ms", "GFLOP/s", "share of peak", "torch", "reference", "error")
NOTE = (
    "ms: median. GFLOP/s and share of peak: of the best round; the share of the median round in brackets; the peak is a "
    "tile out of the first-level cache, measured around each case. torch, reference: their median over psyfast's."
)
NAMES = {tuple(vars(shape).items()): name for name, shape in SHAPES.items()}


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python bench/operators/table.py FILE.json")
    document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    machine, commit = document["machine_info"], document["commit_info"]
    results = [(benchmark["extra_info"], benchmark["stats"]) for benchmark in document["benchmarks"]]
    threads = ", ".join(f"{num} thread{'s' if num > 1 else ''}" for num in sorted({i["threads"] for i, _ in results}))
    dirty = ", with changes" if commit.get("dirty") else ""
    print(f"{machine['cpu'].get('brand_raw', machine['processor'])}, {threads}, ", end="")
    print(f"commit {str(commit.get('id'))[:7]}{dirty}. {NOTE}\n")
    for cells in (HEAD, ("---",) * len(HEAD), *rows(results)):
        print("| " + " | ".join(cells) + " |")


def rows(results: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[tuple[str, ...]]:
    """One for each native case."""
    medians = {(*case_of(info), info["backend"]): stats["median"] for info, stats in results}
    for info, stats in results:
        if info["backend"] != "native":
            continue
        ratios = (medians.get((*case_of(info), backend)) for backend in ("torch", "reference"))
        yield (
            info["operator"],
            NAMES[tuple(info["shape"].items())],
            f"{info['rows']:,}",
            info["lane"],
            info["isa"],
            f"{1e3 * stats['median']:.3g}",
            f"{info['gflop_per_s']:,.0f}",
            f"{info['share']:.2f} ({info['median_share']:.2f})",
            *("" if other is None else f"{other / stats['median']:.1f} ×" for other in ratios),
            f"{info['error']:.0e}",
        )


def case_of(info: dict[str, Any]) -> tuple[Any, ...]:
    """What must be the same in two rows that are compared."""
    return info["operator"], info["lane"], info["rows"], info["threads"], tuple(info["shape"].items())


if __name__ == "__main__":
    main()
