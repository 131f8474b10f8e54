"""The report: one JSON document, and the Markdown that is written from it; the last tables also go to the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PARTS = ("ceilings", "build", "numerics", "determinism", "sanitizer", "throughput", "engine")


def write(document: Row, folder: Path) -> tuple[Path, Path]:
    """gpu-check.md and gpu-check.json."""
    folder.mkdir(parents=True, exist_ok=True)
    as_text, as_json = folder / "gpu-check.md", folder / "gpu-check.json"
    as_text.write_text(markdown(document), encoding="utf-8")
    as_json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return as_text, as_json


def markdown(document: Row) -> str:
    """All of it."""
    parts = ["# psyfast gpu-check", preamble(document), "## Parts", parts_table(document)]
    parts += ["## Numerics and determinism", checks_table(document)]
    for title, table in (
        ("## Throughput", throughput_table(document)),
        ("## Whole engine", engine_table(document)),
        ("## Failures", failures(document)),
    ):
        if table:
            parts += [title, table]
    return "\n\n".join(parts) + "\n"


def last_tables(document: Row) -> str:
    """What is printed at the end."""
    shown = [parts_table(document), throughput_table(document), engine_table(document), verdict(document)]
    return "\n\n".join(table for table in shown if table)


def preamble(document: Row) -> str:
    """What was measured on and with."""
    machine, ceilings = document["machine"], document["ceilings"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    lines = [
        f"- **{verdict(document)}**",
        f"- `{document['command']}`, commit {document['commit']}, {document['started']}, {document['seconds']:.0f} s, "
        f"seed {document['seed']}",
        f"- {machine['device']}, compute capability {'.'.join(map(str, machine['capability']))}, "
        f"{machine['multiprocessors']} multiprocessors, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"L2 {machine['l2_bytes'] / 2**20:.0f} MiB, power limit {machine['power_limit']}; host: {machine['host']}",
        f"- driver {machine['driver']}, CUDA {machine['cuda']}, nvcc: {machine['nvcc'] or 'none'}; "
        f"Python {machine['python']}, {versions}",
    ]
    if ceilings:
        lines.append(
            f"- ceilings, measured first: copy {ceilings['bytes_per_s'] / 1e9:,.0f} GB/s (read + write), bf16 matrix product "
            f"{ceilings['flop_per_s'] / 1e12:,.0f} TFLOP/s, from pinned memory {ceilings['link_bytes_per_s'] / 1e9:.1f} GB/s"
        )
    lines += [f"- {note}" for note in document["notes"]]
    return "\n".join(lines)


def verdict(document: Row) -> str:
    """One sentence."""
    failed = [outcome for outcome in document["outcomes"] if outcome["result"] == "FAILED"]
    not_run = [outcome for outcome in document["outcomes"] if outcome["result"] == "not run"]
    left = f"; {len(not_run)} not run" if not_run else ""
    if failed:
        return f"{len(failed)} of {len(document['outcomes'])} tasks failed{left}"
    return f"all {len(document['outcomes']) - len(not_run)} tasks passed{left}"


def parts_table(document: Row) -> str:
    """A line a task."""
    head = ["part", "task", "result", "cases", "failed", "left out", "s", "note"]
    lines = []
    for outcome in document["outcomes"]:
        checked = [row for row in outcome["rows"] if not row.get("left_out")]
        failed = sum(row.get("passed") is False for row in checked)
        line = [outcome["part"], outcome["name"], outcome["result"], str(len(checked)), str(failed)]
        line += [str(len(outcome["rows"]) - len(checked)), f"{outcome['seconds']:.1f}"]
        lines.append([*line, cell(outcome["error"] or outcome["note"] or "")])
    return table(head, lines)


def checks_table(document: Row) -> str:
    """A line an operator and backend: how near the worst case came to what it may err."""
    head = ["backend", "operator", "cases", "failed", "worst error / bound", "in", "same bits"]
    lines = []
    for (backend, operator), rows in grouped(document, "numerics").items():
        worst = max(rows, key=lambda row: float(row.get("share_of_bound", 0.0)))
        bits = grouped(document, "determinism").get((backend, operator), [])
        kept = f"{sum(row['passed'] for row in bits)} of {len(bits)}" if bits else "–"
        failed = sum(not row["passed"] for row in rows)
        line = [backend, operator, str(len(rows)), str(failed), f"{float(worst.get('share_of_bound', 0.0)):.2f}"]
        lines.append([*line, worst["case"], kept])
    return table(head, lines) if lines else "None were run."


def grouped(document: Row, part: str) -> dict[tuple[str, str], list[Row]]:
    """Rows of a part that were run, by backend and operator."""
    found: dict[tuple[str, str], list[Row]] = {}
    for outcome in document["outcomes"]:
        if outcome["part"] == part:
            for row in outcome["rows"]:
                if not row.get("left_out"):
                    found.setdefault((outcome["name"].split()[0], row["operator"]), []).append(row)
    return found


def throughput_table(document: Row) -> str:
    """A line a problem and contender."""
    head = ["kernel", "case", "by", "ms", "spread", "TFLOP/s", "GB/s", "bound by", "of roofline", "error", "× others"]
    rows = [row for row in rows_of(document, "throughput") if "median_s" in row]
    lines = []
    for row in rows:
        rivals = [
            r["median_s"]
            for r in rows
            if r["case"] == row["case"] and r["operator"] == row["operator"] and not r["ours"]
        ]
        lead = f"{min(rivals) / row['median_s']:.2f}" if rivals and row["ours"] else ""
        error = ", ".join(
            f"{name} {value if isinstance(value, str) else f'{value:.1e}'}" for name, value in row["errors"].items()
        )
        line = [row["operator"], row["case"], row["contender"], f"{row['median_s'] * 1e3:.3f}", f"{row['spread']:.2f}"]
        line += [
            f"{row['flop_per_s'] / 1e12:.1f}" if row["flop"] else "",
            f"{row['bytes_per_s'] / 1e9:,.0f}",
            row["bound_by"],
        ]
        lines.append([*line, f"{row['share_of_roofline']:.0%}", error, lead])
    return table(head, lines) if lines else ""


def engine_table(document: Row) -> str:
    """A line a model, backend and kind of weights."""
    head = [
        "model",
        "backend",
        "weights",
        "tokens",
        "scored",
        "tokens/s",
        "spread",
        "of matrix rate",
        "NLL error mean / max",
        "reference's bf16",
    ]
    lines = []
    for row in rows_of(document, "engine"):
        if "tok_per_s" not in row:
            continue
        line = [row["case"], row["contender"], row["weights"], f"{row['num_tokens']:,}", f"{row['num_scored_rows']:,}"]
        line += [f"{row['tok_per_s']:,.0f}", f"{row['spread']:.2f}", f"{row['share_of_matrix_rate']:.0%}"]
        line += [f"{row['nll_error_mean']:.1e} / {row['nll_error_max']:.1e}"]
        lines.append([*line, f"{row['reference_bf16_error_mean']:.1e} / {row['reference_bf16_error_max']:.1e}"])
    return table(head, lines) if lines else ""


def rows_of(document: Row, part: str) -> list[Row]:
    """Of all tasks of a part."""
    return [row for outcome in document["outcomes"] if outcome["part"] == part for row in outcome["rows"]]


def failures(document: Row) -> str:
    """What failed, with the seed that makes it again."""
    lines = []
    for outcome in document["outcomes"]:
        if outcome["error"]:
            lines.append(f"- {outcome['part']} {outcome['name']}: {outcome['error']}")
        for row in outcome["rows"]:
            if row.get("passed") is False:
                lines.append(
                    f"- {outcome['part']} {outcome['name']}: {row.get('operator', '')} "
                    f"{row['case']}, seed {row.get('seed', '–')}: {row.get('error') or worst_output(row)}"
                )
    return "\n".join(lines)


def worst_output(row: Row) -> str:
    """Which output is how far off."""
    wrong = [output for output in row.get("outputs", []) if not output["passed"]]
    said = [f"{o['output']} is off by {o['error']} (bound {o['bound']}, torch {o['torch_error']})" for o in wrong]
    if row.get("misplaced_ids"):
        said.append(f"{row['misplaced_ids']} rows with a wrong arg max or rank")
    return "; ".join(said) or "the property does not hold"


def table(head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown, columns aligned so that it can be read in a terminal."""
    rows = [list(head), *map(list, lines)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |" for row in rows
    )


def cell(text: str) -> str:
    """Without what would end a table's cell, and not too long."""
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= 160 else text[:157] + "…"
