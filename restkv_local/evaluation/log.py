"""The scores of an evaluation, on disk line by line, so that a run that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from restkv_local.control_characters import show_path
from restkv_local.errors import InputError
from restkv_local.evaluation.grid import Cell
from restkv_local.storage.fields import check_fields
from restkv_local.storage.line_log import LineLog, LogKind, read_lines


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
        SHA-256 of all that decides an answer and its scores: the rendered prompt, where its question begins, what
        ends an answer, references and metrics. Of running text: of its tokens.
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
        KeyError, TypeError, ValueError
            If it is no such line.
        """
        values = dict(line)
        item = Item(**{name: values.pop(name) for name in Item.__slots__})
        scores = {str(name): float(score) for name, score in values.pop("scores").items()}
        cell = check_fields(Cell(**values.pop("cell")))
        record = check_fields(cls(item=check_fields(item), cell=cell, scores=scores, **values))
        record.check_figures()
        return record

    def check_figures(self) -> None:
        """Refuse what tables and pictures could not be made of.

        Raises
        ------
        KeyError, TypeError, ValueError
            If a figure is missing, is none, or has no other to go with.
        """
        if not self.scores:
            raise ValueError("it has no scores")
        layers, errors = self.extra.get("layers", []), self.extra.get("errors", [])
        if len(layers) != len(errors):
            raise ValueError(f"it has {len(errors)} errors of {len(layers)} layers")
        kept = self.kv.get("kept", self.kv["budget"])
        for figure in (self.kv["seen"], kept, self.extra.get("depth", 0), *layers, *errors):
            if not isinstance(figure, int | float):
                raise TypeError(f"{figure!r} is no number")
        if self.kv["seen"] <= 0:
            raise ValueError(f"it is of {self.kv['seen']} tokens")


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
    codes : dict of str to list of str
        Of policies and allocations that are not built in: which code the scores are of.
    was_cut : bool
        Whether its last line was not whole, and is left out.
    """

    conditions: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    codes: dict[str, list[str]] = field(default_factory=dict)
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
        What this run says of itself; written once it has a score. Its ``rules``, if any, are policies and
        allocations of the user's own, and which code they are.

    Attributes
    ----------
    records : dict
        Everything that was measured, by item and cell.
    was_cut : bool
        Whether a line that was not whole was dropped.
    commits : list of str
        Other states of the code that its scores are of, so far as runs know theirs.

    Raises
    ------
    InputError
        If the file cannot be read or written, is damaged, was begun under other conditions, or has scores of a
        rule whose code has changed since.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        self._run: Mapping[str, Any] | None = run
        self._file = LineLog(path, _KIND, conditions)
        _check_rules(path, _find_codes(self._file.lines), run.get("rules", {}))
        self.path = path
        self.was_cut = self._file.was_cut
        self.records = {line.key: line for line in self._file.lines if isinstance(line, Record)}
        runs = [line for line in self._file.lines if isinstance(line, dict)]
        commits = {line.get("commit") for line in runs} - {None, run.get("commit")}
        self.commits = sorted(map(str, commits))
        self._hashes: dict[Item, set[str]] = {}
        for item, _ in self.records:
            self._hashes.setdefault(_unhashed(item), set()).add(item.prompt_hash)

    def check(self, item: Item) -> None:
        """Refuse an item that was another one when the log was begun: tables would average the two.

        Raises
        ------
        InputError
            If the log has scores of the same name, but of another prompt or by another rule.
        """
        if item.prompt_hash not in self._hashes.get(_unhashed(item), {item.prompt_hash}):
            raise InputError(
                f"{show_path(self.path)} has scores of {item.task} {item.id} with another prompt (of needles -n decides"
                " the depths), another --stride, other references or another rule of scoring, or by a version that did"
                " not tell these apart: they cannot be compared; name another log"
            )

    def add(self, record: Record) -> None:
        """Keep a record, on disk before anything else happens.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        about = [] if self._run is None else [{"run": self._run}]
        self._file.append(*about, record.to_json())
        self._run = None
        self.records[record.key] = record


def _find_codes(lines: Iterable[Record | dict[str, Any]]) -> dict[str, set[str | None]]:
    """Return the fingerprints that runs say of the rules of their scores, None where a run says none."""
    codes: dict[str, set[str | None]] = {}
    rules: dict[str, str] = {}
    for line in lines:
        if isinstance(line, Record):
            for rule in line.cell.components:
                codes.setdefault(rule, set()).add(rules.get(rule))
        else:
            rules = line["rules"]
    return codes


def _check_rules(
    path: Path, known: Mapping[str, set[str | None]], rules: Mapping[str, str]
) -> None:
    """Refuse to take scores of other code for those of a rule that has the same name."""
    for rule, code in rules.items():
        if known.get(rule, {code}) != {code}:
            raise InputError(
                f"{show_path(path)} has scores of {rule} by another state of its file, or by a version that did not"
                " tell: they cannot be told apart; name another log, or give the rule another name"
            )


def _unhashed(item: Item) -> Item:
    """Return what an item is called, whatever it holds."""
    return replace(item, prompt_hash="")


def read_log(path: Path) -> LogContent:
    """Read a log of ``restkv eval``.

    Raises
    ------
    InputError
        If it cannot be read, is none, or a line but the last is damaged.
    """
    content = read_lines(path, _KIND)
    runs = [line for line in content.lines if isinstance(line, dict)]
    # One that was measured again counts as it was then.
    records = {line.key: line for line in content.lines if isinstance(line, Record)}
    found = _find_codes(content.lines)
    codes = {rule: sorted(filter(None, each)) for rule, each in found.items() if any(each)}
    return LogContent(content.conditions, runs, list(records.values()), codes, content.was_cut)


def _parse(line: Any) -> Record | dict[str, Any]:
    """Return a score, or what a run says of itself."""
    if "run" not in line:
        return Record.from_json(line)
    run = dict(line["run"])
    return {**run, "rules": dict(run.get("rules", {}))}


_KIND: Final = LogKind(name="restkv eval, version 1", measured="score", parse=_parse)
