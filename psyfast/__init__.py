"""psyfast: exact, fast scoring of human responses under causal language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psyfast.api import ScoreResult, compare, score
    from psyfast.metrics.comparison import ModelComparison
    from psyfast.scorer import Loglikelihood, Scorer

__all__ = ["Loglikelihood", "ModelComparison", "ScoreResult", "Scorer", "__version__", "compare", "score"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Whatever scores, imported on first use: torch takes seconds, `psyfast --help` must not."""
    if name in ("score", "ScoreResult", "compare"):
        from psyfast import api

        return getattr(api, name)
    if name == "ModelComparison":
        from psyfast.metrics import comparison

        return getattr(comparison, name)
    if name in ("Scorer", "Loglikelihood"):
        from psyfast import scorer

        return getattr(scorer, name)
    raise AttributeError(f"module 'psyfast' has no attribute '{name}'")
