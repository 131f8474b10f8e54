"""Names as the report shows them: harmless, short enough for an axis, and still told apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

MAX_LENGTH = 42
_NAMESPACE = "--"


def harmless(name: str) -> str:
    """The name with every control and formatting character (line breaks, changes of direction) shown as �."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c)[0] == "C" else c for c in name)


def shortened(name: str, max_length: int = MAX_LENGTH) -> str:
    """The name, its middle left out where it is longer: beginnings and ends are what tells names apart."""
    if len(name) <= max_length:
        return name
    head = (max_length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (max_length - 1 - head) :]}"


def labels(names: Iterable[str], max_length: int = MAX_LENGTH) -> dict[str, str]:
    """A label for each name, no two alike: those that come out alike are numbered."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        label = shortened(harmless(name), max_length) or "(no name)"
        number = 1
        while label in taken:
            number += 1
            label = f"{shortened(harmless(name), max_length - 5)} ({number})"
        taken.add(label)
        found[name] = label
    return found


def model_labels(models: Iterable[str]) -> dict[str, str]:
    """Labels of models, without their namespace (`Qwen--Qwen2-7B`) where that leaves them different."""
    bare = {model: model.rsplit(_NAMESPACE, 1)[-1] for model in models}
    unique = len(set(bare.values())) == len(bare)
    of_bare = labels(bare.values() if unique else bare)
    return {model: of_bare[bare[model] if unique else model] for model in bare}


def replaced(values: Iterable[str | None], found: Mapping[str, str]) -> list[str | None]:
    """Each value's label; what has none is made harmless."""
    return [None if value is None else found.get(value, shortened(harmless(value))) for value in values]
