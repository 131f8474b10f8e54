"""Choice sets: the options of a response as they are scored (PROTOCOL 4, Options)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

OptionSets = tuple[tuple[str, ...] | None, ...]


def usable_sets(options: Sequence[Sequence[str] | None] | None, num_responses: int) -> OptionSets:
    """One set a response, its options without white space at the edges, each once; None where it has none.

    Options that stand beside another number of responses cannot be assigned: then nobody has any.
    """
    if options is None or len(options) != num_responses:
        return (None,) * num_responses
    return tuple(None if one is None else _usable(one) for one in options)


def _usable(options: Iterable[str]) -> tuple[str, ...] | None:
    kept = tuple(dict.fromkeys(option.strip() for option in options))
    return kept if len(kept) > 1 else None


def needs_terminator(options: Sequence[str]) -> bool:
    """Whether one option is a prefix of another: a plain product would give the shorter one the longer's mass."""
    return any(longer.startswith(shorter) for shorter, longer in permutations(options, 2))


def option_flags(response: str, options: Sequence[str] | None, *, uncertain: bool = False) -> set[str]:
    """Flags that a scored response has for its choice set. uncertain: the text never names the set."""
    if options is None:
        return set()
    flags = {"terminated"} if needs_terminator(options) else set()
    if uncertain:
        flags.add("options_uncertain")
    if response not in options:
        flags.add("not_in_options")
    return flags
