"""Numbers in sentences, and sentences that several figures say."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 pair`, `1,200 pairs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def no_effect(table: str) -> str:
    """What stands in the place of effects that are all null."""
    return f"No experiment has an effect size of what is compared: the column `reason` of `{table}` says why."
