"""psyfast: exact, fast scoring of human responses under causal language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psyfast.api import ScoreResult, score

__all__ = ["ScoreResult", "__version__", "score"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`score` and its result type, imported on first use: torch takes seconds, `psyfast --help` must not."""
    if name in ("score", "ScoreResult"):
        from psyfast import api

        return getattr(api, name)
    raise AttributeError(f"module 'psyfast' has no attribute '{name}'")
