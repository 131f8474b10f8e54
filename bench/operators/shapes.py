"""The models' sizes that operators are timed at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model's sizes: hidden, feed-forward, query heads, kv heads, head size, vocabulary."""

    D: int
    F: int
    H: int
    K: int
    E: int
    V: int


SHAPES = {
    "135M": Shape(576, 1536, 9, 3, 64, 49_152),
    "0.6B": Shape(1024, 3072, 16, 8, 128, 151_936),
    "1B": Shape(2048, 8192, 32, 8, 64, 128_256),
}
