"""What has been measured: a line of JSON a sample, gone on with after a stop; and how sure a count is.

Needs nothing but Python: the environment of kvpress reads it too.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Log:
    """Samples in memory, and in a file where one is given; a last line that was cut is measured again.

    Parameters
    ----------
    path : Path or None
        The file; one that exists is continued.
    **about
        What is said of each sample that is added: the commit.
    """

    def __init__(self, path: Path | None, **about: Any) -> None:
        self._path = path
        self._about = about
        data = path.read_bytes() if path and path.exists() else b""
        whole, end, rest = data.rpartition(b"\n")
        self._rows: list[Row] = [json.loads(line) for line in whole.splitlines()]
        self._cut_at = len(whole + end) if rest else None

    def __contains__(self, sample: Row) -> bool:
        """Tell whether a sample has been measured."""
        return any(_agrees(row, sample) for row in self._rows)

    def rows(self, wanted: Row | None = None) -> list[Row]:
        """Return the rows that have these values, by default all."""
        return [row for row in self._rows if _agrees(row, wanted or {})]

    def add(self, row: Row) -> None:
        """Keep one sample, on disk before anything else happens."""
        row = row | self._about
        self._rows.append(row)
        if self._path:
            with self._path.open("ab") as file:
                if self._cut_at is not None:
                    file.truncate(self._cut_at)
                    self._cut_at = None
                file.write(json.dumps(row).encode() + b"\n")


def interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    share, spread = hits / n, z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return 100 * (centre - half), 100 * (centre + half)


def found_text(rows: list[Row], key: str = "hit") -> str:
    """Write how many of the rows found it, with the interval; empty without rows."""
    if not rows:
        return ""
    hits = sum(row[key] for row in rows)
    low, high = interval(hits, len(rows))
    return f"{hits}/{len(rows)} ({low:.0f}-{high:.0f})"


def _agrees(row: Row, wanted: Row) -> bool:
    return all(row.get(key) == value for key, value in wanted.items())
