"""Reads files with one JSON object a line; whatever is wrong is one line with file and line number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from restkv_local.errors import InputError

Kind = type | tuple[type, ...]

_WORDS: Final = {
    str: "text",
    int: "number",
    float: "number",
    list: "list",
    dict: "object",
    type(None): "null",
}


def read_jsonl(path: Path, fields: Mapping[str, Kind]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, blank lines left out.

    Parameters
    ----------
    path : Path
        A UTF-8 file, possibly larger than memory.
    fields : mapping of str to type or tuple of types
        Fields that every object must have, and what they may be; others are left as they are.

    Raises
    ------
    InputError
        If the file cannot be read, holds no object, or a line is not such an object.
    """
    n_object = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse(line, f"{path}:{number}", fields)
                    n_object += 1
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if n_object == 0:
        raise InputError(f"{path} is empty; it must hold one JSON object a line")


def _parse(line: bytes, place: str, fields: Mapping[str, Kind]) -> dict[str, Any]:
    try:
        record = json.loads(line.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 text: offset {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{place} is not JSON: {error.msg} (character {error.pos}); each line must be one object"
        ) from None
    except (ValueError, RecursionError) as error:  # thousands of digits or brackets
        raise InputError(f"{place} cannot be read as JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(
            f"{place} holds {type(record).__name__}; each line must be one JSON object"
        )
    for name, kind in fields.items():
        if name not in record:
            found = ", ".join(record) or "none"
            raise InputError(f"{place} lacks the field {name!r}; its fields are {found}")
        if not isinstance(record[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(dict.fromkeys(_WORDS.get(each, each.__name__) for each in kinds))
            raise InputError(f"{place} has {name}={_shorten(record[name])}, which must be {wanted}")
    return record


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
