"""Machines known by their numbers: what a forecast for another machine than this one is made from.

Rates are dense, with fp32 sums, as the makers' data sheets state them (NVIDIA: A100 80GB SXM 2021, A10 2021, L4 2023, L40S 2023, H100 SXM
2023, H200 SXM 2024, B200 in HGX 2024, RTX 4090 Ada whitepaper 2022). They are what no product passes, not what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from psyfast.errors import UsageError


@dataclass(frozen=True)
class Device:
    """One device. bf16_tflop_per_s, fp32_tflop_per_s: of matrix products in each lane, fp32 without TF32."""

    name: str
    bf16_tflop_per_s: float
    fp32_tflop_per_s: float
    memory_bytes: float
    bytes_per_s: float

    def tflop_per_s(self, lane: str) -> float:
        """The rate of a lane."""
        return self.bf16_tflop_per_s if lane == "bf16" else self.fp32_tflop_per_s


DEVICES = {
    device.name: device
    for device in (
        Device("a10", 125, 31.2, 24e9, 600e9),
        Device("a100", 312, 19.5, 80e9, 2039e9),
        Device("l4", 121, 30.3, 24e9, 300e9),
        Device("l40s", 362, 91.6, 48e9, 864e9),
        Device("rtx4090", 165.2, 82.6, 24e9, 1008e9),
        Device("h100", 989.4, 66.9, 80e9, 3350e9),
        Device("h200", 989.4, 66.9, 141e9, 4800e9),
        Device("b200", 2250, 75, 180e9, 8000e9),
    )
}


def device_named(name: str) -> Device:
    """A device of the table; UsageError lists them."""
    if name.lower() not in DEVICES:
        raise UsageError(f"device '{name}' is not known by its numbers; choose one of {', '.join(DEVICES)}")
    return DEVICES[name.lower()]
