"""What the device reaches at best, measured in the same run as what is compared with it: a copy, and a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from bench.gpu_check.roofline import DATASHEETS, Limits
from bench.gpu_check.timing import Clock, timed

Row = dict[str, Any]


def measure(
    device: torch.device,
    clock: Clock,
    is_late: Callable[[], bool],
    *,
    copy_bytes: int = 1 << 30,
    sides: tuple[int, ...] = (4096, 8192, 16384),
    rounds: int = 20,
) -> Row:
    """Bytes/s of a copy inside the device (read + write), flop/s of bf16 products, bytes/s from pinned memory.

    Products are of random data (zeros draw less power and clock higher), square, with bf16 results; the best side counts.
    """
    source = torch.randint(0, 255, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = timed({"copy": [lambda: target.copy_(source)]}, clock, rounds, is_late)["copy"]
    host = torch.empty(min(copy_bytes, 1 << 28), dtype=torch.uint8, pin_memory=device.type == "cuda")
    linked = timed(
        {"link": [lambda: target[: len(host)].copy_(host, non_blocking=True)]}, clock, max(3, rounds // 4), is_late
    )["link"]
    products = {side: _product(side, device, clock, rounds, is_late) for side in sides}
    return {
        "bytes_per_s": 2 * copy_bytes / copied.median_s,
        "copy": asdict(copied),
        "link_bytes_per_s": len(host) / linked.median_s,
        "link": asdict(linked),
        "flop_per_s": max(products.values()),
        "products": {str(side): rate for side, rate in products.items()},
    }


def _product(side: int, device: torch.device, clock: Clock, rounds: int, is_late: Callable[[], bool]) -> float:
    a, b = torch.randn(2, side, side, device=device).to(torch.bfloat16)
    out = torch.empty_like(a)
    taken = timed({"mm": [lambda: torch.mm(a, b, out=out)]}, clock, rounds, is_late)["mm"]
    return 2.0 * side**3 / taken.median_s


def limits_of(measured: Row, device_name: str) -> Limits:
    """The measured ceilings; exponentials by the data sheet of a GPU that is known by name, None otherwise."""
    exps = next((sheet.limits.exp_per_s for sheet in DATASHEETS if sheet.name in device_name), None)
    return Limits(measured["bytes_per_s"], measured["flop_per_s"], exps)
