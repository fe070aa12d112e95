"""The measured cells, on disk line by line, so that a run that was stopped goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from restkv_local.storage.fields import check_fields
from restkv_local.storage.line_log import LineLog, LogKind, read_lines


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


def _parse(line: Any) -> Sample:
    return check_fields(Sample(**line))


_KIND: Final = LogKind(name="restkv bench, version 2", measured="sample", parse=_parse)


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
        self._file = None if path is None else LineLog(path, _KIND, metadata)
        self.samples: list[Sample] = [] if self._file is None else self._file.lines

    def add(self, sample: Sample) -> None:
        """Keep a sample, on disk before anything else happens.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        if self._file is not None:
            self._file.append(asdict(sample))
        self.samples.append(sample)


def read_bench_log(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Return what all cells of a log share, and the cells as they were tried last; a line that was cut is left out.

    Raises
    ------
    InputError
        If the file cannot be read or is no such log.
    """
    content = read_lines(path, _KIND)
    return content.conditions, list({sample.key: sample for sample in content.lines}.values())
