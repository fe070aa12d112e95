"""Whether what a file holds has the types that it is declared to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def check_fields(record: Record) -> Record:
    """Return a dataclass instance if its fields hold what they are declared to.

    Raises
    ------
    TypeError
        If one does not.
    """
    hints = get_type_hints(type(record))
    for name in (one.name for one in fields(record)):  # type: ignore[arg-type]
        value = getattr(record, name)
        if not _is_a(value, hints[name]):
            raise TypeError(f"{name}={value!r} is no {hints[name]}")
    return record


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is what a field's annotation says; fields of a dataclass within are not looked at."""
    kind, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if kind is UnionType:
        return any(_is_a(value, one) for one in args)
    if kind is list:
        return isinstance(value, list) and all(_is_a(one, args[0]) for one in value)
    if kind is tuple:
        kinds = args[:1] * len(value) if args[1:] == (...,) and isinstance(value, tuple) else args
        return (
            isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_a, value, kinds))
        )
    if kind in (dict, Mapping):
        return isinstance(value, dict) and all(_is_a(one, args[1]) for one in value.values())
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(
            value, bool
        )
    return isinstance(value, hint)
