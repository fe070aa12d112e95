"""Tables that read well as text and on a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def write_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, n_left: int) -> str:
    """Write a table; its first ``n_left`` columns hold words, the others numbers."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    ruler = "|" + "---|" * n_left + "---:|" * (len(head) - n_left)
    return "\n".join([line(head), ruler, *map(line, rows)])
