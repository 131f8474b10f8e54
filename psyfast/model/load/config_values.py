"""Values of a configuration, checked: ModelError says which key, what it is and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from psyfast.errors import ModelError

Config = Mapping[str, Any]


def object_at(config: Config, key: str, where: str) -> Config:
    """What stands under a key; an empty object where nothing does."""
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: '{key}' is {value!r}, expected an object; download config.json again")
    return value


def positive_at(config: Config, key: str, where: str, default: int | None = None) -> int:
    """A count; the default where the key is silent."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{where}: '{key}' is {_said(config, key)}, expected a positive integer")
    return value


def number_at(config: Config, key: str, where: str, default: float | None = None) -> float:
    """A positive finite number; the default where the key is silent."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelError(f"{where}: '{key}' is {_said(config, key)}, expected a positive number")
    return float(value)


def flag_at(config: Config, key: str, where: str, *, default: bool = False) -> bool:
    """True or false; the default where the key is silent."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):  # a string is true to Python, whatever it says
        raise ModelError(f"{where}: '{key}' is {value!r}, expected true or false")
    return value


def refuse_null(config: Config, keys: Iterable[str], where: str) -> None:
    """ModelError for the first of these keys that is there and null, which says neither a value nor to take the default."""
    for key in keys:
        if key in config and config[key] is None:
            raise ModelError(
                f"{where}: '{key}' is null, expected a value; give it one, or leave the key out for its default"
            )


def _said(config: Config, key: str) -> str:
    """A key's value, as errors show it."""
    if key not in config:
        return "missing"
    return "null" if config[key] is None else repr(config[key])
