"""Options as nested mappings, laid over dataclasses that have defaults."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from retinanet.errors import UserError

T = TypeVar("T")


def changed(value: T, changes: Mapping[str, Any], where: str) -> T:
    """A copy of a dataclass with fields replaced, nested ones by nested mappings.

    Raises:
        UserError: there is no such field (the message names the nearest), or it is of another type.
    """
    options = [item for item in dataclasses.fields(value) if "settled" not in item.metadata]  # type: ignore[arg-type]
    names = {item.name: item.default for item in options}
    new: dict[str, Any] = {}
    for key, change in changes.items():
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ";"
            raise UserError(f"unknown option {where}.{key}{hint} expected one of {', '.join(names)}")
        if names[key] is None and (
            change is None or (isinstance(change, int | float) and not isinstance(change, bool))
        ):
            new[key] = change  # null by default: a number or null
        else:
            new[key] = _like(getattr(value, key), change, f"{where}.{key}")
    return dataclasses.replace(value, **new)  # type: ignore[type-var]


def flatten_fields(value: Any) -> dict[str, Any]:
    """The values of a dataclass by the names of its fields, those of nested dataclasses by ``outer.inner``."""
    flat: dict[str, Any] = {}
    for name, entry in vars(value).items():
        if dataclasses.is_dataclass(entry):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten_fields(entry).items()}
        else:
            flat[name] = entry
    return flat


def find_differences(value: Any, default: Any = None) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults, nested ones as nested mappings: see :func:`changed`."""
    defaults = vars(default or type(value)())
    return {
        key: find_differences(entry, defaults[key]) if dataclasses.is_dataclass(entry) else entry
        for key, entry in vars(value).items()
        if entry != defaults[key]
    }


def nest_compat(values: Mapping[str, Any], compat: type) -> dict[str, Any]:
    """Settings with those of ``compat`` in a group, beside which older files have them."""
    names = {item.name for item in dataclasses.fields(compat)}
    nested = {key: value for key, value in values.items() if key not in names}
    flat = {key: value for key, value in values.items() if key in names}
    return {**nested, "compat": {**flat, **values.get("compat", {})}}


def _like(old: Any, change: Any, where: str) -> Any:
    """The new value of a field, of the type of its old one."""
    if dataclasses.is_dataclass(old) and isinstance(change, Mapping):
        return changed(old, change, where)
    if isinstance(old, tuple) and isinstance(change, list | tuple):
        if not all(isinstance(entry, int | float) for entry in change):
            raise UserError(f"{where} is {old!r} by default; expected numbers, got {change!r}")
        return tuple(change)
    if isinstance(old, float) and isinstance(change, int) and not isinstance(change, bool):
        return float(change)
    if type(change) is not type(old):
        expected = "a number or null" if old is None else type(old).__name__
        raise UserError(f"{where} is {old!r} by default; expected {expected}, got {change!r}")
    return change
