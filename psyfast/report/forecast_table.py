"""What `psyfast plan` prints of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

_PARTS = {"start": "start", "load": "load", "read_encode": "read and encode", "engine": "engine"}


def forecast_table(found: Mapping[str, Any], machines: tuple[int, str] | None = None) -> Table:
    """A forecast as plain data (`Forecast.to_dict`), a line each. machines: how many of them finish in a time, as it was given."""
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    counted, required = found["counted"], found["counted"]["required"]
    table.add_row("model", f"{escape(found['model_id'])}, {found['num_params'] / 1e9:.3g} billion weights")
    table.add_row(
        "data",
        ", ".join(_many(counted[f"num_{thing}s"], thing) for thing in ("transcript", "response", "token")),
    )
    shared = counted["num_tokens"] / max(1, counted["num_unique"])
    table.add_row(
        "to compute",
        f"{_many(counted['num_unique'], 'token')} ({shared:.2f} times fewer by sharing), "
        f"{_many(counted['num_entries'], 'row')} of the head, in {_many(counted['num_windows'], 'window')}",
    )
    parts = {part: required[part] for part in ("linear", "attention", "delta_rule", "head")}
    total = sum(parts.values())
    there = _works_of(required)
    shares = ", ".join(f"{name} {parts[part] / max(1, total):.0%}" for part, name in there.items())
    table.add_row("arithmetic", f"{_flop(total)}: {shares}")
    memory = found["memory"]
    of_parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in memory.items())
    of_all = "" if found["num_in_step"] == 1 else f" for {found['num_in_step']} models in step"
    table.add_row("memory", f"{sum(memory.values()) / 1e9:.2f} GB{of_all}, weights {found['weights']}: {of_parts}")
    if not found["fits"]:
        table.add_row(
            "", f"[bold]more than {found['device']} has[/bold]; its weights would have to be streamed or quantised"
        )
    table.add_row("from disk", f"{found['disk_bytes'] / 1e9:.2f} GB")
    times = ", ".join(
        f"{_PARTS[part]} {duration(seconds)}" for part, seconds in found["seconds"].items() if seconds >= 0.05
    )
    table.add_row("time", f"{duration(found['total_seconds'])} on {found['device']}: {times}")
    table.add_row("", _basis(found))
    if machines is not None:
        table.add_row(
            "machines",
            f"{_many(machines[0], 'such machine')} for an end within {escape(machines[1])}",
        )
    return table


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def _works_of(required: Mapping[str, Any]) -> dict[str, str]:
    """What the arithmetic consists of, by its name in print; the delta rule only where a model has some."""
    works = {"linear": "linear", "attention": "attention", "delta_rule": "delta rule", "head": "head"}
    return {part: name for part, name in works.items() if part != "delta_rule" or required[part]}


def _basis(found: Mapping[str, Any]) -> str:
    rate, shares = f"{found['peak_gflop_per_s']:,.0f} GFLOP/s", found["shares"]
    if found["device"] == "this machine":
        there = _works_of(found["counted"]["required"])
        reached = ", ".join(f"{name} {shares[part]:.0%}" for part, name in there.items())
        return f"peak measured here: {rate}; share of it that psyfast reaches: {reached}"
    share = next(iter(shares.values()))
    return f"data sheet: {rate}; {share:.0%} of it is an assumption: psyfast was not measured there"


def _flop(flop: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flop >= size:
            return f"{flop / size:,.3g} {unit}"
    return f"{flop / 1e9:,.3g} GFLOP"


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
