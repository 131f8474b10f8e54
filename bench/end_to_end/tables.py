"""The Markdown that bench_end_to_end.py writes from its own JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def markdown(document: dict[str, Any]) -> str:
    """Every table, under what it was measured on and with."""
    parts = ["# End to end", _preamble(document)]
    rows, errors = document["timings"], {(row["contender"], row["case"]): row for row in document["errors"]}
    for threads in sorted({row["threads"] for row in rows}):
        here = [row for row in rows if row["threads"] == threads]
        if plain := [row for row in here if row["case"] == "plain"]:
            parts += [f"## All transcripts, {_threads(threads)}", _plain_table(plain, errors, document)]
        if alone := [row for row in here if row["case"].startswith("alone-")]:
            parts += [
                f"## Each transcript alone, {_threads(threads)}: tokens/s (tokens/CPU-s)",
                _lengths(alone, document),
            ]
        if growth := [row for row in here if row["case"].startswith("grown-")]:
            parts += [f"## A growing transcript, {_threads(threads)}", _growth(growth, document)]
    if document["options"]:
        parts += ["## Four options of two tokens at every response", _options(document["options"])]
    if document["pairs"]:
        parts += ["## Every response as a request of its own", _pairs(document["pairs"])]
    if document["failures"]:
        parts += ["## Failed", *(f"`{name}`: {reason}" for name, reason in document["failures"].items())]
    return "\n\n".join(parts) + "\n"


def _preamble(document: Row) -> str:
    loads = [load for row in document["timings"] for load in row["load_average"]]
    return "\n".join(
        [
            f"- `{document['command']}`, commit {document['commit']}, {document['started']}",
            f"- {document['hardware']}, {document['system']}; load average before each process {min(loads)} to {max(loads)}",
            f"- model {document['model']}; {document['transcripts']}; `--protocol {document['protocol']}`",
            f"- {_versions(document['versions'])}",
            f"- peak, GFLOP/s (tile: out of L1, whole: a matrix product, torch: its own): {_peaks(document)}",
            "- medians of interleaved rounds; spread: (max − min) / median; CPU-s: processor seconds of all threads;",
            "  share: of the whole product's peak in the lane, processor seconds over threads beside wall clock;",
            "  error: NLL a response against transformers in fp32 with the same bf16 weights, nats; loading told apart",
        ]
    )


def _versions(by_contender: dict[str, dict[str, str]]) -> str:
    """Each set of versions once, with whoever has it."""
    holders: dict[str, list[str]] = {}
    for name, versions in by_contender.items():
        holders.setdefault(", ".join(f"{package} {version}" for package, version in versions.items()), []).append(name)
    return "; ".join(f"{', '.join(names)}: {versions}" for versions, names in holders.items())


def _peaks(document: Row) -> str:
    return "; ".join(
        f"{_threads(int(threads))}, {lane}: " + ", ".join(f"{product} {best:.0f}" for product, best in products.items())
        for threads, lanes in document["peak_gflop_per_s"].items()
        for lane, products in lanes.items()
    )


def _plain_table(rows: Sequence[Row], errors: dict[tuple[str, str], Row], document: Row) -> str:
    facts = document["cases"]["plain"]
    ours = {row["contender"]: row for row in rows if row["contender"].startswith("psyfast")}
    head = ["", "rounds", "tokens/s", "spread", "tokens/CPU-s", "psyfast is … × (wall; CPU)"]
    head += ["GFLOP/CPU-s", "share of peak (wall; CPU)", "peak RSS", "load s", "abs error mean / max", "signed"]
    lines = []
    for row in rows:
        lane = "fp32" if "fp32" in row["contender"] else "bf16"
        our = ours.get(f"psyfast-{lane}")
        ratio = f"{row['wall_s'] / our['wall_s']:.2f}; {row['cpu_s'] / our['cpu_s']:.2f}" if our else ""
        line = [f"`{row['contender']}`", str(row["rounds"]), f"{row['tok_per_s']:.0f}", f"{row['wall_spread']:.2f}"]
        line += [f"{row['tok_per_cpu_s']:.0f}", ratio, f"{row['gflop_per_cpu_s']:.0f}"]
        peak = document["peak_gflop_per_s"][str(row["threads"])][lane]["whole"]
        line.append(f"{row['gflop_per_s'] / peak:.0%}; {row['gflop_per_cpu_s'] * row['threads'] / peak:.0%}")
        line += [f"{row['peak_rss_bytes'] / 1e9:.2f} GB", f"{row['load_wall_s']:.1f}"]
        lines.append(line + _error_cells(errors.get((row["contender"], "plain"))))
    about = (
        f"{facts['num_tokens']:,} tokens, {facts['num_responses']:,} responses, {facts['gflop']:,.0f} GFLOP required."
    )
    return f"{about}\n\n{_table(head, lines)}"


def _error_cells(error: Row | None) -> list[str]:
    if error is None or error["mean_abs_nats"] is None:
        return ["–", "–"]
    lost = f" ({error['num_not_finite']} not finite)" if error["num_not_finite"] else ""
    signed = f"{error['mean_signed_nats']:+.2g}"
    return [f"{error['mean_abs_nats']:.2g} / {error['max_abs_nats']:.2g}{lost}", signed]


def _lengths(rows: Sequence[Row], document: Row) -> str:
    names = sorted({row["case"] for row in rows}, key=lambda name: document["cases"][name]["num_tokens"])
    head = ["", *(f"{document['cases'][name]['num_tokens']:,}" for name in names)]
    lines = []
    for contender in dict.fromkeys(row["contender"] for row in rows):
        of = {row["case"]: row for row in rows if row["contender"] == contender}
        cells = [f"{of[n]['tok_per_s']:.0f} ({of[n]['tok_per_cpu_s']:.0f})" if n in of else "–" for n in names]
        lines.append([f"`{contender}`", *cells])
    lines += [["`psyfast-bf16` is … × the best other in bf16 (wall; CPU)", *(_lead(rows, name) for name in names)]]
    return _table(head, lines)


def _lead(rows: Sequence[Row], name: str) -> str:
    of = {row["contender"]: row for row in rows if row["case"] == name and "bf16" in row["contender"]}
    others = [row for contender, row in of.items() if not contender.startswith("psyfast")]
    if "psyfast-bf16" not in of or not others:
        return "–"
    wall, cpu = (min(row[clock] for row in others) / of["psyfast-bf16"][clock] for clock in ("wall_s", "cpu_s"))
    return f"{wall:.2f}; {cpu:.2f}"


def _growth(rows: Sequence[Row], document: Row) -> str:
    head = ["", "tokens", "MFLOP/token", "CPU-ms/token", "GFLOP/CPU-s", "time a FLOP, to the shortest's"]
    lines, first = [], {}
    for row in sorted(rows, key=lambda row: (row["contender"], document["cases"][row["case"]]["num_tokens"])):
        facts = document["cases"][row["case"]]
        a_flop = row["cpu_s"] / facts["gflop"]
        base = first.setdefault(row["contender"], a_flop)
        line = [
            f"`{row['contender']}`",
            f"{facts['num_tokens']:,}",
            f"{1e3 * facts['gflop'] / facts['num_tokens']:.0f}",
        ]
        line += [f"{1e3 / row['tok_per_cpu_s']:.3f}", f"{row['gflop_per_cpu_s']:.0f}", f"{a_flop / base:.2f}"]
        lines.append(line)
    return _table(head, lines)


def _options(rows: Sequence[Row]) -> str:
    head = ["threads", "options", "plain CPU-s", "with options", "ratio", "one request an option", "ratio"]
    lines = []
    for row in rows:
        extrapolated = f"{row['one_by_one_cpu_s_extrapolated']:.0f} (extrapolated from {row['num_requests_run']})"
        line = [str(row["threads"]), f"{row['num_options']:,}", f"{row['plain_cpu_s']:.2f}"]
        line += [f"{row['with_options_cpu_s']:.2f}", f"{row['ratio_to_plain']:.2f}", extrapolated]
        lines.append([*line, f"{row['ratio_one_by_one']:.0f}"])
    return _table(head, lines)


def _pairs(rows: Sequence[Row]) -> str:
    head = ["threads", "one pass, CPU-s", "requests, CPU-s", "ratio"]
    lines = [
        [str(row["threads"]), f"{row['one_pass_cpu_s']:.2f}", f"{row['pairs_cpu_s']:.2f}", f"{row['ratio']:.2f}"]
        for row in rows
    ]
    return _table(head, lines)


def _table(head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [list(head), *map(list, lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _threads(threads: int) -> str:
    return f"{threads} thread" + ("s" if threads > 1 else "")
