"""`psyfast doctor`: this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from psyfast.cli.application import terminal
from psyfast.cli.parameters import Backend, Device, Json, LaneOption


def doctor(
    lane: LaneOption = "bf16",
    device: Device = "cpu",
    backend: Backend = "auto",
    peak: Annotated[bool, typer.Option("--peak", help="Also measure how fast matrices are multiplied here.")] = False,
    as_json: Json = False,
) -> None:
    """Show what this machine has and what psyfast would use."""
    from psyfast.doctor import PEAK_NOTES, diagnose, doctor_table, measure_peak, peak_table

    findings = diagnose(lane=lane, device=device, backend=backend)
    if peak:
        findings["peak"] = measure_peak()
    if as_json:
        typer.echo(json.dumps(findings, indent=1))
        return
    console = terminal()
    console.print(doctor_table(findings))
    if peak:
        console.print()
        console.print(peak_table(findings["peak"]))
        for note in PEAK_NOTES:
            console.print(note, style="dim", highlight=False)
