"""A log of measurements: a line about what they share, then a line each; a run that was stopped goes on there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from restkv_local.control_characters import show_path
from restkv_local.errors import InputError

Line = TypeVar("Line")

# What damaged JSON, JSON of another shape, and a thousand brackets raise.
_NO_LINE: Final = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogKind(Generic[Line]):
    """What a log holds.

    Attributes
    ----------
    name : str
        The command that writes it, and the version of its lines.
    measured : str
        What one line is called.
    parse : callable
        Makes a line of its JSON value; raises ValueError, TypeError, KeyError or AttributeError if it is none.
    """

    name: str
    measured: str
    parse: Callable[[Any], Line]


@dataclass(slots=True)
class LogLines(Generic[Line]):
    """A log as it was read.

    Attributes
    ----------
    conditions : dict
        What all lines share.
    lines : list
        As the kind parses them.
    was_cut : bool
        Whether its last line was not whole, and is left out.
    """

    conditions: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    was_cut: bool = False


class LineLog(Generic[Line]):
    """A file that measurements are added to.

    Parameters
    ----------
    path : Path
        The file; one that exists is continued, without a last line that was cut.
    kind : LogKind
        What it holds.
    conditions : mapping
        What all its lines share: JSON values.

    Attributes
    ----------
    lines : list
        Those that were there.
    was_cut : bool
        Whether a line that was not whole was dropped.

    Raises
    ------
    InputError
        If the file cannot be read or written, is damaged, or was begun under other conditions.
    """

    def __init__(self, path: Path, kind: LogKind[Line], conditions: Mapping[str, Any]) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.was_cut = False
        head = _encode({"kind": kind.name, "conditions": dict(conditions)})
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise InputError(f"{show_path(path)} is a device or a pipe; name another log")
            data = path.read_bytes() if path.exists() else b""
            if b"\n" not in data and head.startswith(data):
                # New, or its first line was not whole. Nothing is cut off: another run may have begun it just now.
                self.was_cut = bool(data)
                path.touch()
                with path.open("r+b") as stream:
                    stream.write(head)
                return
            content = _parse_lines(path, kind, data)
            if not content.lines and not data.startswith(head):  # begun, and nothing was measured
                self.was_cut = content.was_cut
                path.write_bytes(head)
                return
            _compare(path, kind, content.conditions, json.loads(head)["conditions"])
            if content.was_cut:
                self.was_cut = True
                with path.open("r+b") as stream:
                    # Longer by now: another run measures, and what looked cut was being written.
                    if stream.seek(0, os.SEEK_END) == len(data):
                        stream.truncate(data.rindex(b"\n") + 1)
        except OSError as error:
            raise _failed(path, error) from error
        self.lines = content.lines

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Write lines, all at once.

        Raises
        ------
        InputError
            If the file cannot be written; none of them is in it then.
        """
        try:
            # Unbuffered: what a full disk did not take must not be tried once more on closing.
            with self.path.open("a+b", buffering=0) as stream:
                _append(stream, b"".join(map(_encode, lines)))
        except OSError as error:
            raise _failed(self.path, error) from error


def read_lines(path: Path, kind: LogKind[Line]) -> LogLines[Line]:
    """Read a log.

    Raises
    ------
    InputError
        If it cannot be read, is none of this kind, or a line but the last is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _failed(path, error) from error
    return _parse_lines(path, kind, data)


def _append(stream: FileIO, data: bytes) -> None:
    """Add whole lines or nothing, whatever was cut before."""
    if stream.seek(0, os.SEEK_END):
        stream.seek(-1, os.SEEK_END)
        # A half that could not be taken back: a line of its own, which is named, spoils no other.
        data = data if stream.read(1) == b"\n" else b"\n" + data
    n_written = 0
    try:
        while n_written < len(data):
            n_written += stream.write(data[n_written:])
    except BaseException:
        with suppress(OSError):
            end = stream.tell()
            # Only what is ours: another run may have added to it.
            if n_written and stream.seek(0, os.SEEK_END) == end:
                stream.truncate(end - n_written)
        raise


def _parse_lines(path: Path, kind: LogKind[Line], data: bytes) -> LogLines[Line]:
    whole, _, rest = data.rpartition(b"\n")
    head, *lines = whole.split(b"\n")
    content: LogLines[Line] = LogLines(_read_head(path, kind, head), was_cut=bool(rest))
    for number, line in enumerate(lines, start=2):
        try:
            content.lines.append(kind.parse(json.loads(line)))
        except _NO_LINE as error:
            raise InputError(
                f"{show_path(path)}, line {number} is no {kind.measured} ({' '.join(str(error).split())});"
                " remove the line, it is measured again"
            ) from error
    return content


def _encode(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _read_head(path: Path, kind: LogKind[Any], line: bytes) -> dict[str, Any]:
    try:
        head = json.loads(line)
        conditions = head["conditions"] if head["kind"] == kind.name else None
    except _NO_LINE:
        conditions = None
    if not isinstance(conditions, dict):
        command = kind.name.partition(",")[0]
        raise InputError(f"{show_path(path)} is no log of {command}; name another file")
    return conditions


def _compare(
    path: Path, kind: LogKind[Any], known: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Refuse a log whose lines could not be compared with ours."""
    for key in wanted:
        if known.get(key) != wanted[key]:
            raise InputError(
                f"{show_path(path)} was begun with {key}={known.get(key)!r}, this run has {key}={wanted[key]!r}:"
                f" their {kind.measured}s cannot be compared; name another log"
            )


def _failed(path: Path, error: OSError) -> InputError:
    return InputError(f"{show_path(path)}: {error.strerror or error}; name another log")
