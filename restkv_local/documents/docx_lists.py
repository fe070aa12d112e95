"""Counts the items of a Word document's lists, several levels of them, as Word numbers them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from restkv_local.documents.numbering import format_number
from restkv_local.documents.xml import child_of, int_of, local_name, value_of

BULLET: Final = "-"

_STYLES: Final = {
    "lowerLetter": "lower-letter",
    "upperLetter": "upper-letter",
    "lowerRoman": "lower-roman",
    "upperRoman": "upper-roman",
}


@dataclass(frozen=True, slots=True)
class _Level:
    """How one level is numbered: the format of its number, and the text with %1, %2 in it."""

    kind: str = "bullet"
    text: str = ""
    start: int = 1


@dataclass(slots=True)
class _Scheme:
    """A definition that several lists may share, and where its counters stand, by level."""

    levels: dict[int, _Level]
    counters: dict[int, int] = field(default_factory=dict)

    def level(self, index: int) -> _Level:
        return self.levels.get(index, _Level())

    def count(self, index: int, start: int | None) -> None:
        """Go on by one item; deeper levels begin anew."""
        if start is None and index in self.counters:
            self.counters[index] += 1
        else:
            self.counters[index] = self.level(index).start if start is None else start
        self.counters = {level: n for level, n in self.counters.items() if level <= index}

    def number(self, match: re.Match[str]) -> str:
        index = int(match[1]) - 1
        level = self.level(index)
        return format_number(self.counters.get(index, level.start), _STYLES.get(level.kind, ""))


class ListNumbers:
    """The numbers of all lists of a document, asked for in its order.

    Parameters
    ----------
    root : lxml element or None
        The numbering part; None for a document without lists.
    """

    def __init__(self, root: etree._Element | None) -> None:
        schemes: dict[str, _Scheme] = {}
        by_style: dict[str, _Scheme] = {}
        linked: dict[str, str] = {}
        self._lists: dict[str, _Scheme] = {}
        # The level at which a list begins with a number of its own, until it has begun.
        self._starts: dict[tuple[str, int], int] = {}
        for element in () if root is None else root:
            tag = local_name(element)
            if tag == "abstractNum":
                key = value_of(element, "abstractNumId")
                schemes[key] = _Scheme(dict(map(_read_level, _all(element, "lvl"))))
                by_style[value_of(child_of(element, "styleLink"))] = schemes[key]
                linked[key] = value_of(child_of(element, "numStyleLink"))
            elif tag == "num":
                list_id, key = (
                    value_of(element, "numId"),
                    value_of(child_of(element, "abstractNumId")),
                )
                scheme = by_style.get(linked.get(key) or "-", schemes.get(key))
                self._lists[list_id] = scheme or _Scheme({})
                for override in _all(element, "lvlOverride"):
                    if start := value_of(child_of(override, "startOverride")):
                        level = int_of(value_of(override, "ilvl"), 0)
                        self._starts[list_id, level] = int_of(start, 1)

    def next(self, list_id: str | None, level: int) -> str:
        """Return what stands before the next item: ``3.2``, ``(a)`` or a dash; empty if no list is meant."""
        if list_id in (None, "0"):
            return ""
        assert list_id is not None
        scheme = self._lists.get(list_id)
        if scheme is None:
            return BULLET
        scheme.count(level, self._starts.pop((list_id, level), None))
        kind = scheme.level(level).kind
        if kind == "bullet":
            return BULLET
        return re.sub("%([1-9])", scheme.number, scheme.level(level).text).strip()


def _all(element: etree._Element, tag: str) -> list[etree._Element]:
    return [child for child in element if local_name(child) == tag]


def _read_level(element: etree._Element) -> tuple[int, _Level]:
    level = _Level(
        kind=value_of(child_of(element, "numFmt")) or "decimal",
        text=value_of(child_of(element, "lvlText")),
        start=int_of(value_of(child_of(element, "start")), 0),
    )
    return int_of(value_of(element, "ilvl"), 0), level
