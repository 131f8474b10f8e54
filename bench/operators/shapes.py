"""The models' sizes that operators are timed at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A model's sizes: hidden, feed-forward, query heads, kv heads, head size, vocabulary.

    Of experts: how many there are, and how many a token uses; each has its part of the feed-forward width, so that `experts`
    takes the arithmetic of `mlp` and the router's.
    """

    D: int
    F: int
    H: int
    K: int
    E: int
    V: int
    X: int = 8
    U: int = 2


SHAPES = {
    "135M": Shape(576, 1536, 9, 3, 64, 49_152),
    "0.6B": Shape(1024, 3072, 16, 8, 128, 151_936),
    "1B": Shape(2048, 8192, 32, 8, 64, 128_256),
    "OLMoE": Shape(2048, 8 * 1024, 16, 16, 128, 50_304, X=64, U=8),
}
