"""Dataclasses from plain values, as JSON, YAML and the command line give them, and back.

The one place that decides whether a value has the type that a field declares.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from retinanet.errors import UserError, suggest

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Nested dataclasses, mappings, tuples and paths as JSON and YAML know them, without fields that are derived."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in option_fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], values: Any, where: str) -> T:
    """A dataclass whose fields are at their defaults, except for those in ``values``; see :func:`with_changes`."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected names with values, got {values!r}")
    return with_changes(kind(), values, where)


def with_changes(value: T, changes: Mapping[str, Any], where: str) -> T:
    """A copy of a dataclass with fields replaced, nested ones by nested mappings.

    Args:
        value: the dataclass.
        changes: new values by field; lists become tuples, and whole numbers do for floats.
        where: what the dataclass is called in messages, such as ``architecture``; "" for the options of a command.

    Raises:
        UserError: there is no such field (the message names the nearest), or a value is of another type.
    """
    hints = get_type_hints(type(value))
    names = [field.name for field in option_fields(value)]
    new = {}
    for name, change in changes.items():
        full = f"{where}.{name}".removeprefix(".")
        if name not in names:
            raise UserError(f"unknown option {full}{suggest(name, names)} Expected one of {', '.join(names)}")
        new[name] = _typed(change, hints[name], getattr(value, name), full)
    return dataclasses.replace(value, **new)  # type: ignore[type-var]


def find_differences(value: Any, other: Any = None) -> dict[str, Any]:
    """The fields of a dataclass that differ from ``other`` (its defaults), as :func:`with_changes` takes them."""
    others = vars(type(value)() if other is None else other)
    return {
        name: find_differences(entry, others[name]) if dataclasses.is_dataclass(entry) else entry
        for name, entry in vars(value).items()
        if entry != others[name]
    }


def flatten_fields(value: Any) -> dict[str, Any]:
    """The values of a dataclass by the names of its fields, those of nested dataclasses by ``outer.inner``.

    Likewise those of a mapping and of the mappings in it.
    """
    flat: dict[str, Any] = {}
    is_mapping = isinstance(value, Mapping)
    for name, entry in (value if is_mapping else vars(value)).items():
        if isinstance(entry, Mapping) if is_mapping else dataclasses.is_dataclass(entry):
            flat |= {f"{name}.{inner}": leaf for inner, leaf in flatten_fields(entry).items()}
        else:
            flat[name] = entry
    return flat


def check_types(value: Any, where: str) -> None:
    """Check that every field of a dataclass has the type that it declares.

    Raises:
        UserError: one has not; ``where`` is as for :func:`with_changes`.
    """
    hints = get_type_hints(type(value))
    for field in option_fields(value):
        entry, hint, full = getattr(value, field.name), hints[field.name], f"{where}.{field.name}".removeprefix(".")
        if dataclasses.is_dataclass(hint) and not isinstance(entry, hint):  # type: ignore[arg-type]
            raise UserError(f"{full}: expected {_describe(hint)} as {hint.__name__}(...), got {entry!r}")  # type: ignore[union-attr]
        _typed(entry, hint, None, full)


def check_type(value: Any, hint: Any, where: str) -> None:
    """Check that a value is what a type hint says.

    Raises:
        UserError: it is not; ``where`` is what it is called in the message.
    """
    _typed(value, hint, None, where)


def option_fields(value: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that can be set; those marked ``settled`` follow from others."""
    return [field for field in dataclasses.fields(value) if "settled" not in field.metadata]


def _typed(value: Any, hint: Any, present: Any, where: str) -> Any:
    """A value as the type hint of its field wants it; ``present`` is the one that nested changes start from."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return with_changes(present, value, where)
        fits = isinstance(value, hint)  # type: ignore[arg-type]
    elif kind in (Union, types.UnionType):
        for option in arguments:
            with suppress(UserError):
                return _typed(value, option, None, where)
        fits = False
    elif kind is Literal:
        fits = isinstance(value, str) and value in arguments
    elif kind in (tuple, list):
        endless = kind is list or arguments[-1] is Ellipsis
        fits = isinstance(value, list | tuple if kind is tuple else list)
        if fits and (endless or len(value) == len(arguments)):
            each = zip(value, arguments[:1] * len(value) if endless else arguments, strict=True)
            return kind(_typed(entry, one, None, f"{where}[{i}]") for i, (entry, one) in enumerate(each))
        fits = False
    elif hint is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        value = float(value) if fits else value
    else:
        fits = hint is Any or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
    if not fits:
        raise UserError(f"{where}: expected {_describe(hint)}, got {value!r}")
    return value


def _describe(hint: Any) -> str:
    """A type hint in words."""
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return "a list of numbers" if inner[-1] is Ellipsis else f"a list of {len(inner)} numbers"
    if dataclasses.is_dataclass(hint) or dict in (hint, get_origin(hint)):
        return "names with values"
    return "a list" if get_origin(hint) is list else getattr(hint, "__name__", str(hint))
