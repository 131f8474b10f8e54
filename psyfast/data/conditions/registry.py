"""Conditions by their names."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial

from psyfast.data.conditions.chat import render_chat
from psyfast.data.conditions.condition import Condition, Render
from psyfast.data.conditions.discrete import render_discrete
from psyfast.data.conditions.own import OwnFunction, own_condition
from psyfast.data.conditions.persona import render_persona, render_shuffled_persona
from psyfast.data.conditions.plain import render_plain
from psyfast.data.conditions.relabel import render_relabel
from psyfast.data.conditions.trials import render_history, render_no_instructions
from psyfast.data.records import PERSONA_FIELDS
from psyfast.errors import UsageError

_SIMPLE: dict[str, Render] = {
    "plain": render_plain,
    "discrete": render_discrete,
    "no-instructions": render_no_instructions,
    "no-history": partial(render_history, 0),
    "relabel": render_relabel,
}
_OF_FIELDS = {"persona": render_persona, "shuffled-persona": render_shuffled_persona}

NAMES = (
    "plain",
    "chat",
    "persona",
    "shuffled-persona",
    "discrete",
    "no-instructions",
    "no-history",
    "history=K",
    "relabel",
)
"""As a user writes them; `persona=FIELD+FIELD` shows only some fields."""


def conditions_of(names: Sequence[str], functions: Sequence[OwnFunction] = ()) -> tuple[Condition, ...]:
    """The conditions of a run, in order; those of functions last. Raises UsageError for what is none."""
    found = [condition_of(name) for name in names] + [own_condition(function) for function in functions]
    if not found:
        raise UsageError("no condition was named: give --condition, for example --condition plain")
    for name, count in Counter(condition.name for condition in found).items():
        if count > 1:
            raise UsageError(f"condition '{name}' was named {count} times; name each once")
    for condition in found:
        if condition.is_own and _is_known(condition.name):
            raise UsageError(f"a condition '{condition.name}' comes with psyfast; give your function another name")
    return tuple(found)


def condition_of(name: str) -> Condition:
    """The condition that a name stands for. Raises UsageError."""
    if name in _SIMPLE:
        return Condition(name, _SIMPLE[name])
    if name == "chat":
        return Condition(name, render_chat, needs_template=True)
    kind, has_value, value = name.partition("=")
    if kind == "history" and has_value:
        return Condition(name, partial(render_history, _whole_number(value)))
    if kind in _OF_FIELDS:
        fields = _fields(name, value) if has_value else PERSONA_FIELDS
        render = partial(_OF_FIELDS[kind], fields)
        return Condition(name, render, shuffles=kind == "shuffled-persona", persona_fields=fields)
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"condition '{name}' is unknown, expected one of {', '.join(NAMES)}{hint}")


def _is_known(name: str) -> bool:
    return name in _SIMPLE or name in _OF_FIELDS or name in ("chat", "history")


def _whole_number(value: str) -> int:
    # One spelling each, so that a name is a condition and the other way round.
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise UsageError(
            f"condition 'history={value}' names no number of trials, expected 1 or more, such as history=5; "
            "without any it is no-history"
        )
    return int(value)


def _fields(name: str, value: str) -> tuple[str, ...]:
    fields = value.split("+")
    for field in fields:
        if field not in PERSONA_FIELDS:
            close = difflib.get_close_matches(field, PERSONA_FIELDS, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            known = ", ".join(PERSONA_FIELDS)
            raise UsageError(f"condition '{name}': no persona field is called '{field}'{hint}; the fields are {known}")
    if len(set(fields)) < len(fields):
        raise UsageError(f"condition '{name}' names a field twice; name each once")
    return tuple(fields)
