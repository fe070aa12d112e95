"""Puts blocks of text together and remembers where each place begins."""

from __future__ import annotations

import re
from typing import Final

from restkv_local.documents.document import Mark

# Invisible, and an obstacle to whoever compares words: soft hyphens, zero-width spaces, byte order
# marks, control characters other than tab and newline. A no-break space is a space to a reader.
_CLEAN: Final = {
    **dict.fromkeys([*range(9), *range(11, 32), 0x7F, 0xAD, 0x200B, 0x2060, 0xFEFF]),
    0xA0: " ",
}
_SPACES: Final = re.compile(r"\s+")

# A heading is a name in an answer; some files mark whole paragraphs as headings.
_LABEL_CHARS: Final = 80


def clean(text: str) -> str:
    """Return the text without characters that nobody sees."""
    return text.translate(_CLEAN)


def flatten(text: str) -> str:
    """Return the text on one line."""
    return _SPACES.sub(" ", text).strip()


def name_place(noun: str, title: str) -> str:
    """Return the label of a place with a title: ``section "Results"``."""
    title = flatten(clean(title))
    if len(title) > _LABEL_CHARS:
        title = title[: _LABEL_CHARS - 1].rstrip() + "…"
    return f'{noun} "{title}"'


def list_numbers(numbers: list[int]) -> str:
    """Write ascending numbers briefly: ``3, 7-12``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


class TextWriter:
    """Collects blocks; a blank line stands between two, a mere line end before a tight one."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._marks: list[Mark] = []
        self._paragraphs: list[Mark] = []
        self._label: str | None = None

    def place(self, label: str) -> None:
        """Name the place where the next block begins."""
        self._label = label

    def add(self, block: str, *, tight: bool = False) -> bool:
        """Append one block and tell whether it held any text; one without is left out."""
        block = clean(block).rstrip().strip("\n")
        if not block.strip():
            return False
        gap = "" if not self._parts else "\n" if tight else "\n\n"
        start = self._length + len(gap)
        if self._label is not None:
            self._marks.append(Mark(start, self._label))
            self._label = None
        if not tight or not self._paragraphs:
            self._paragraphs.append(Mark(start, f"paragraph {len(self._paragraphs) + 1}"))
        self._parts += (gap, block)
        self._length = start + len(block)
        return True

    def finish(self) -> tuple[str, tuple[Mark, ...]]:
        """Return the text and its marks, the first at 0; without any place, paragraphs count."""
        marks = self._marks or self._paragraphs
        if marks and marks[0].start > 0:
            marks = [Mark(0, "the beginning"), *marks]
        return "".join(self._parts), tuple(marks)
