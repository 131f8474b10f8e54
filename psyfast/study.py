"""Facts of the Psych-201 study (arXiv 2605.07632) that reading data and computing metrics have in common."""

from __future__ import annotations

LEFT_OUT = (
    "demircan2024evaluatingcategory",
    "demircan2024evaluatingreward",
    "feher2020humans",
    "xu2021novelty",
    "singh2022representing",
    "jansen2021logic",
)
"""Studies that the published figures leave out (PROTOCOL 1)."""
