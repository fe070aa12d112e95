"""What a file says, as one text whose every position has a name that a person can look up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

Kind = Literal["text", "markdown", "html", "pdf", "docx", "epub"]


@dataclass(frozen=True, slots=True)
class Mark:
    """From character ``start`` on the place is ``label``, until the next mark."""

    start: int
    label: str


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one file.

    Attributes
    ----------
    name : str
        The file as the user named it, or ``"standard input"``.
    text : str
        What the model reads: everything, in reading order.
    marks : tuple of Mark
        Ascending, the first at 0; empty where the file's own lines are the places.
    kind : str
        What the file was.
    sha256 : str
        Of the file's bytes, in hexadecimal.
    notes : tuple of str
        What a person must know about the text, such as pages without any.
    """

    name: str
    text: str
    marks: tuple[Mark, ...]
    kind: Kind
    sha256: str
    notes: tuple[str, ...] = ()

    def locate(self, start: int, end: int | None = None) -> str:
        """Name the place of ``text[start:end]``, or of one character.

        Returns
        -------
        str
            Such as ``page 3``, ``pages 3-4``, ``lines 12-15`` or ``section "Results"``.

        Raises
        ------
        ValueError
            If this is no part of the text.
        """
        stop = start if end is None else end
        if not 0 <= start <= stop <= len(self.text):
            raise ValueError(
                f"a place must lie within the {len(self.text):,} characters of {self.name};"
                f" got start={start}, end={end}"
            )
        return _join_places(self._place(start), self._place(max(start, stop - 1)))

    def _place(self, position: int) -> str:
        if not self.marks:
            return f"line {self.text.count(chr(10), 0, position) + 1}"
        index = bisect_right(self.marks, position, key=lambda mark: mark.start) - 1
        return self.marks[index].label


def _join_places(first: str, last: str) -> str:
    """Name all from one place to another: ``page 3``, ``page 4`` are ``pages 3-4``."""
    if first == last:
        return first
    noun, one = first.split(" ", 1)
    other, two = last.split(" ", 1)
    if noun != other:
        return f"{first} to {last}"
    return (
        f"{noun}s {one}-{two}" if one.isdecimal() and two.isdecimal() else f"{noun}s {one} to {two}"
    )


Source: TypeAlias = str | Path | Document


def list_sources(given: Source | Sequence[Source]) -> list[Source]:
    """Return what was given as a list; a string alone is one text, not its letters."""
    return [given] if isinstance(given, (str, Path, Document)) else list(given)
