"""Which two cells are held against each other: base and post-trained models, and the conditions of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from psyfast.errors import RunError
from psyfast.metrics.pairs import Pair, PairTable, name_key
from psyfast.metrics.results import Cell, Results

POST_TRAINING, PERSONA, TEMPLATE, CONDITION = "post-training", "persona", "template", "condition"
PLAIN, CHAT, WITH_PERSONA, SHUFFLED_PERSONA, DISCRETE = "plain", "chat", "persona", "shuffled-persona", "discrete"

_OF_ONE_MODEL = (
    (PERSONA, WITH_PERSONA, PLAIN),
    (PERSONA, SHUFFLED_PERSONA, PLAIN),
    (PERSONA, WITH_PERSONA, SHUFFLED_PERSONA),
    (TEMPLATE, PLAIN, CHAT),
)
"""Kind, condition a, condition b. d is positive where b is worse: where persona helps, where the template harms.

Besides these, every condition a of a model is held against its `plain` b: d is positive where the condition helps.
"""


@dataclass(frozen=True)
class Contrast:
    """Cells a and b, each (model, condition); effects are positive where b has the larger NLL."""

    kind: str
    a: tuple[str, str]
    b: tuple[str, str]
    pair: Pair | None = None


def find_contrasts(results: Results, table: PairTable) -> tuple[Contrast, ...]:
    """Every contrast that the results have both sides of: pairs under every condition, conditions of every model."""
    return (*_of_pairs(results, table), *_of_conditions(results))


def _of_pairs(results: Results, table: PairTable) -> Iterator[Contrast]:
    models = models_by_key(results.cells)
    conditions = dict.fromkeys(cell.condition for cell in results.cells)
    for pair in table.pairs:
        base, post = models.get(name_key(pair.base)), models.get(name_key(pair.post))
        if base is None or post is None or base == post:
            continue
        for condition in conditions:
            if results.cell(base, condition) and results.cell(post, condition):
                yield Contrast(POST_TRAINING, (base, condition), (post, condition), pair)


def _of_conditions(results: Results) -> Iterator[Contrast]:
    for model in results.models:
        for kind, a, b in _OF_ONE_MODEL:
            if results.cell(model, a) and results.cell(model, b):
                yield Contrast(kind, (model, a), (model, b))
        conditions = [cell.condition for cell in results.cells if cell.model == model]
        for condition in conditions if PLAIN in conditions else ():
            if condition != PLAIN:
                yield Contrast(CONDITION, (model, condition), (model, PLAIN))


def models_by_key(cells: Sequence[Cell]) -> dict[str, str]:
    """Model by what its names come down to. Raises RunError where two models come down to one name."""
    found: dict[str, str] = {}
    for cell in cells:
        for name in cell.names:
            other = found.setdefault(name_key(name), cell.model)
            if other != cell.model:
                raise RunError(
                    f"the models {other} and {cell.model} are both '{name_key(name)}' to the table of pairs; "
                    "metrics of both at once need other folder names"
                )
    return found
