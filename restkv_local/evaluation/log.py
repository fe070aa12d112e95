"""The scores of an evaluation, on disk line by line, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.evaluation.grid import Cell
from restkv_local.model.gguf_header import show_path

_KIND: Final = "restkv eval, version 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is asked, whatever the cell.

    Attributes
    ----------
    task, id : str
        The task and the sample within it, its seed and its length.
    family : str
        The benchmark that the task belongs to.
    length : int or None
        Most tokens that were asked for.
    seed : int
        Of the samples and of policies that draw.
    question : str
        ``"aware"``: it was read before the eviction, or guided it; ``"unknown"``: it came after. Empty where
        nothing is asked.
    prompt_hash : str
        SHA-256 of the rendered prompt.
    """

    task: str
    family: str
    id: str
    length: int | None
    seed: int
    question: str
    prompt_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One item in one cell.

    Attributes
    ----------
    item, cell : Item and Cell
        What was measured.
    scores : dict of str to float
        By metric, the main one first.
    tokens : dict of str to int
        How many were read before the eviction, after it, and written.
    timings : dict of str to float
        Milliseconds. Cells that shared a reading have the same for it.
    kv : dict
        The engine's report at the end.
    prediction : str
        The answer.
    references : list of str
        What it was compared with.
    extra : dict
        What plots need besides: depth, or errors by layer.
    """

    item: Item
    cell: Cell
    scores: dict[str, float]
    tokens: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    kv: dict[str, Any] = field(default_factory=dict)
    prediction: str = ""
    references: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Item, Cell]:
        """What it is the measurement of."""
        return self.item, self.cell

    def to_json(self) -> dict[str, Any]:
        """Return the line of the log: the item's fields first."""
        values = asdict(self)
        return {**values.pop("item"), **values}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Record:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        KeyError, TypeError
            If it is no such line.
        """
        values = dict(line)
        item = Item(**{name: values.pop(name) for name in Item.__slots__})
        scores = {str(name): float(score) for name, score in values.pop("scores").items()}
        return cls(item=item, cell=Cell(**values.pop("cell")), scores=scores, **values)


@dataclass(slots=True)
class LogContent:
    """A log as it was read.

    Attributes
    ----------
    conditions : dict
        What all scores of the file share.
    runs : list of dict
        What each run says of itself.
    records : list of Record
        The scores.
    was_cut : bool
        Whether its last line was not whole, and is left out.
    """

    conditions: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    was_cut: bool = False


class EvalLog:
    """A file with a line about its conditions, then for each run one about it and one a score.

    Parameters
    ----------
    path : Path
        The file; one that exists is continued.
    conditions : mapping
        What all scores of the file share: JSON values.
    run : mapping
        What this run says of itself; written once it has a score.

    Attributes
    ----------
    records : dict
        Everything that was measured, by item and cell.
    was_cut : bool
        Whether a line that was not whole was dropped.

    Raises
    ------
    InputError
        If the file cannot be read or written, is damaged, or was begun under other conditions.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        self.path = path
        self._run: Mapping[str, Any] | None = run
        self.records: dict[tuple[Item, Cell], Record] = {}
        self.was_cut = False
        head = {"kind": _KIND, "conditions": dict(conditions)}
        try:
            data = path.read_bytes() if path.exists() else b""
            if b"\n" not in data and _encode(head).startswith(data):
                # New, or its first line was not whole.
                self.was_cut = bool(data)
                path.write_bytes(_encode(head))
                return
            content = read_log(path)
            _compare(path, content.conditions, json.loads(json.dumps(conditions)))
            if content.was_cut:
                self.was_cut = True
                with path.open("r+b") as stream:
                    stream.truncate(data.rindex(b"\n") + 1)
        except OSError as error:
            raise _failed(path, error) from error
        self.records = {record.key: record for record in content.records}

    def add(self, record: Record) -> None:
        """Keep a record, on disk before anything else happens.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        lines = _encode(record.to_json())
        if self._run is not None:
            lines = _encode({"run": self._run}) + lines
        try:
            with self.path.open("ab") as stream:
                stream.write(lines)
        except OSError as error:
            raise _failed(self.path, error) from error
        self._run = None
        self.records[record.key] = record


def read_log(path: Path) -> LogContent:
    """Read a log of ``restkv eval``.

    Raises
    ------
    InputError
        If it cannot be read, is none, or a line but the last is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _failed(path, error) from error
    whole, _, rest = data.rpartition(b"\n")
    head, *lines = whole.split(b"\n")
    content = LogContent(_read_head(path, head), was_cut=bool(rest))
    for number, line in enumerate(lines, start=2):
        try:
            values = json.loads(line)
            if "run" in values:
                content.runs.append(dict(values["run"]))
            else:
                content.records.append(Record.from_json(values))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{show_path(path)}, line {number} is no score ({' '.join(str(error).split())}); remove the line, it is"
                " measured again"
            ) from error
    return content


def _encode(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


def _read_head(path: Path, line: bytes) -> dict[str, Any]:
    try:
        head = json.loads(line)
        conditions = head["conditions"] if head["kind"] == _KIND else None
    except (ValueError, TypeError, KeyError):
        conditions = None
    if not isinstance(conditions, dict):
        raise InputError(f"{show_path(path)} is no log of restkv eval; name another file")
    return conditions


def _compare(path: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a log whose scores could not be compared with ours."""
    for key in wanted:
        if known.get(key) != wanted[key]:
            raise InputError(
                f"{show_path(path)} was begun with {key}={known.get(key)!r}, this run has {key}={wanted[key]!r}:"
                " their scores cannot be compared; name another log"
            )


def _failed(path: Path, error: OSError) -> InputError:
    return InputError(f"{show_path(path)}: {error.strerror or error}; name another log")
