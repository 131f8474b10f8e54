"""What the machine could do: the fastest of a few matrix products before each round, for shares of it."""

from __future__ import annotations

from psyfast.ops.cpu import isa_name
from psyfast.ops.peak import measure_product, measure_tile, measure_torch
from psyfast.ops.records import Lane

SECONDS = 0.2


class Peaks:
    """GFLOP/s by threads (as text, for JSON), lane and product: `tile` (out of registers and L1), `whole` (a matrix product), `torch`."""

    def __init__(self) -> None:
        self.best: dict[str, dict[str, dict[str, float]]] = {}

    def measure(self, threads: int) -> None:
        """Once more; the fastest counts, for others only ever slow it down."""
        for lane in Lane:
            best = self.best.setdefault(str(threads), {}).setdefault(lane.value, {})
            timings = {
                "tile": measure_tile(lane, isa_name(), threads, SECONDS),
                "whole": measure_product(lane, isa_name(), threads, SECONDS),
                "torch": measure_torch(lane, threads, SECONDS),
            }
            for product, timing in timings.items():
                best[product] = max(best.get(product, 0.0), timing.best)
