"""What `psyfast pairs` prints: base and post-trained pairs, or all models."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from psyfast.metrics.pairs import Pair, PairTable

DASH = "–"


def pair_table(table: PairTable) -> Table:
    """One line a pair: what was made of which base, by type, with the sizes in billions of parameters."""
    shown = _empty()
    for heading in ("post-trained", "base"):
        shown.add_column(heading, overflow="fold")
    shown.add_column("type", no_wrap=True)
    shown.add_column("10⁹", justify="right", no_wrap=True)
    for idx, pair in enumerate(table.pairs):
        is_last = idx + 1 == len(table.pairs) or table.pairs[idx + 1].type != pair.type
        shown.add_row(escape(pair.post), escape(pair.base), escape(pair.type), _sizes(table, pair), end_section=is_last)
    num_apart = sum(pair.apart for pair in table.pairs)
    apart = f", and {num_apart} apart, in no mean over pairs" if num_apart else ""
    shown.caption = f"{len(table.pairs) - num_apart} pairs{apart}; {len(table.models)} models (--models)"
    return shown


def model_table(table: PairTable) -> Table:
    """One line a model."""
    shown = _empty()
    shown.add_column("model", overflow="fold")
    shown.add_column("generation", overflow="fold")
    shown.add_column("10⁹", justify="right", no_wrap=True)
    shown.add_column("in pairs as", overflow="fold")
    for name, model in table.models.items():
        role = table.type_of((name,))
        shown.add_row(escape(name), escape(model.generation), f"{model.size_b:g}", escape(role or DASH))
    shown.caption = f"{len(table.models)} models"
    return shown


def pair_document(table: PairTable) -> dict[str, Any]:
    """Pairs and models as JSON takes them."""
    return {
        "pairs": [
            {
                "post": pair.post,
                "base": pair.base,
                "type": pair.type,
                "generation": table.generation_of(pair),
                "post_size_b": table.size_of(pair.post),
                "base_size_b": table.size_of(pair.base),
                "apart": pair.apart,
                "in_trend": table.in_trend(pair),
            }
            for pair in table.pairs
        ],
        "models": [
            {"model": name, "generation": model.generation, "size_b": model.size_b, "type": table.type_of((name,))}
            for name, model in table.models.items()
        ],
    }


def _sizes(table: PairTable, pair: Pair) -> str:
    sizes = [table.size_of(name) for name in (pair.base, pair.post)]
    base, post = (DASH if size is None else f"{size:g}" for size in sizes)
    return base if base == post else f"{base} → {post}"


def _empty() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
