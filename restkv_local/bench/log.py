"""The measured cells, on disk line by line, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from restkv_local.errors import InputError
from restkv_local.model.gguf_header import show_path

_KIND: Final = "restkv bench, version 1"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured cell: its result, or the reason why there is none.

    Attributes
    ----------
    cache : str
        The column's name.
    depth, repetition : int
        The row and the round, both from 0.
    commit : str or None
        Of the checkout that measured it.
    result : dict or None
        See :func:`~restkv_local.bench.process.run_cell`.
    error : str or None
        One line.
    options : dict
        Fields of Config that made the column.
    """

    cache: str
    depth: int
    repetition: int
    commit: str | None = None
    result: Mapping[str, Any] | None = None
    error: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int, int]:
        """What it is one measurement of."""
        return self.cache, self.depth, self.repetition


class BenchLog:
    """A file with one line about the run, then one a cell.

    Parameters
    ----------
    path : Path or None
        The file; one that exists is continued. None keeps nothing.
    metadata : mapping
        What all cells of the file share.

    Raises
    ------
    InputError
        If the file cannot be read or written, is damaged, or was begun under other conditions.
    """

    def __init__(self, path: Path | None, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self.samples: list[Sample] = []
        if path is None:
            return
        try:
            if path.exists() and path.stat().st_size:
                self._read(path, metadata)
            else:
                self._append(path, {"kind": _KIND, "metadata": metadata})
        except (OSError, UnicodeDecodeError) as error:
            raise _failed(path, error) from error

    def add(self, sample: Sample) -> None:
        """Keep a sample, on disk before anything else happens.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        self.samples.append(sample)
        if self._path is not None:
            try:
                self._append(self._path, asdict(sample))
            except OSError as error:
                raise _failed(self._path, error) from error

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _read(self, path: Path, metadata: Mapping[str, Any]) -> None:
        whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
        head, *lines = whole.split("\n")
        _check_head(path, _read_head(path, head), metadata)
        self.samples = _read_samples(path, lines)
        if rest:
            # A process that died while it wrote: that cell is measured again.
            path.write_text(whole + "\n", encoding="utf-8")


def read_bench_log(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Return what all cells of a log share, and the cells; a last line that was cut is left out.

    Raises
    ------
    InputError
        If the file cannot be read or is no such log.
    """
    try:
        head, *lines = path.read_text(encoding="utf-8").split("\n")[:-1] or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise _failed(path, error) from error
    return _read_head(path, head), _read_samples(path, lines)


def _read_samples(path: Path, lines: list[str]) -> list[Sample]:
    samples = []
    for number, line in enumerate(lines, start=2):
        try:
            samples.append(Sample(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{show_path(path)}, line {number} is no sample ({error}); remove the line, its cell is"
                " measured again"
            ) from error
    return samples


def _read_head(path: Path, line: str) -> dict[str, Any]:
    try:
        head = json.loads(line)
        known = head["metadata"] if head["kind"] == _KIND else None
    except (ValueError, TypeError, KeyError):
        known = None
    if not isinstance(known, dict):
        raise InputError(f"{show_path(path)} is no log of restkv bench; name another file")
    return known


def _check_head(path: Path, known: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Refuse a log whose cells could not be compared with ours."""
    # As JSON sees it: tuples are lists there.
    wanted = json.loads(json.dumps(metadata))
    differing = [key for key in wanted if known.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        raise InputError(
            f"{show_path(path)} was begun with {key}={known.get(key)!r}, this run has"
            f" {key}={wanted[key]!r}: their cells cannot be compared; name another log"
        )


def _failed(path: Path, error: OSError | UnicodeDecodeError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    return InputError(f"{show_path(path)}: {reason or error}; name another log")
