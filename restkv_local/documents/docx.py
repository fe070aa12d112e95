"""Reads a Word document: body, lists with their numbers, tables, notes, text boxes, in its order.

The XML is walked here, not through python-docx, which gives neither content controls, inserted text,
text boxes and footnotes nor the automatic numbers that people cite ("clause 3.2").
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from restkv_local.documents.archive import Archive
from restkv_local.documents.document import Mark
from restkv_local.documents.docx_lists import ListNumbers
from restkv_local.documents.writer import TextWriter, flatten, name_place
from restkv_local.documents.xml import child_of, int_of, local_name, parse_xml, value_of

_MAIN: Final = "word/document.xml"
# The tags below are local names: ISO "strict" files differ in namespaces only.
_WRAPPERS: Final = frozenset(
    {"sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag", "AlternateContent", "Choice"}
)
# What was deleted, codes of fields, and properties are no text of the document.
_UNREAD: Final = frozenset(
    {
        "pPr",
        "rPr",
        "sdtPr",
        "del",
        "moveFrom",
        "delText",
        "instrText",
        "delInstrText",
        "rt",
        "Fallback",
    }
)
_CHARACTERS: Final = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "sym": "\ufffd"}
_EXPONENT: Final = re.compile(r"[-+−]?\d")
# The outline level of what is no heading.
_BODY_LEVEL: Final = 9
_MAX_LEVEL: Final = 8  # of a list: nine levels are all there are
_LEFT_OUT: Final = {"comments": "comments", "header": "page headers", "footer": "page footers"}
_DRAWN: Final = {"chart": "charts", "diagramData": "diagrams", "aFChunk": "embedded files"}


def read_docx(data: bytes, name: str) -> tuple[str, tuple[Mark, ...], tuple[str, ...]]:
    """Return text, marks and notes of a Word document.

    Raises
    ------
    InputError
        If it is broken, or larger than the limits of :class:`Archive`.
    """
    archive = Archive(data, name)
    parts = _Parts(archive)
    styles = _read_styles(parts.root("styles"))
    reader = _Reader(styles, ListNumbers(parts.root("numbering")))
    for kind in ("footnotes", "endnotes"):
        reader.add_notes(kind[:-1], parts.root(kind))
    main = parse_xml(archive.read(parts.main), archive, parts.main)
    for body in main:
        if local_name(body) == "body":
            reader.read(body)
    return *reader.writer.finish(), tuple(_note_left_out(parts))


class _Parts:
    """The parts of the package, by what the main part calls them."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        targets = self._relations("", "_rels/.rels").get("officeDocument", [])
        self.main = next(iter(targets), _MAIN)
        folder, file = posixpath.split(self.main)
        self._targets = self._relations(folder, f"{folder}/_rels/{file}.rels")

    def root(self, kind: str) -> etree._Element | None:
        """Return the first part of a kind, None where there is none."""
        return next(self.roots(kind), None)

    def roots(self, kind: str) -> Iterator[etree._Element]:
        """Yield every part of a kind."""
        for target in self._targets.get(kind, []):
            if target in self._archive.members:
                yield parse_xml(self._archive.read(target), self._archive, target)

    def count(self, kind: str) -> int:
        """Return how many parts of a kind the main part refers to."""
        return len(self._targets.get(kind, []))

    def _relations(self, folder: str, member: str) -> dict[str, list[str]]:
        targets: dict[str, list[str]] = {}
        if member not in self._archive.members:
            return targets
        for relation in parse_xml(self._archive.read(member), self._archive, member):
            kind = posixpath.basename(relation.get("Type") or "")
            target = posixpath.join("/", folder, relation.get("Target") or "")
            targets.setdefault(kind, []).append(posixpath.normpath(target).lstrip("/"))
        return targets


@dataclass(slots=True)
class _Style:
    """What a paragraph's style says about its place and its number."""

    is_heading: bool = False
    list_id: str | None = None
    level: int | None = None


def _read_styles(root: etree._Element | None) -> dict[str, _Style]:
    """Return paragraph styles by id, with what they inherit."""
    elements = {value_of(style, "styleId"): style for style in (() if root is None else root)}
    styles: dict[str, _Style] = {}
    for style_id in elements:
        style = _Style()
        seen: set[str] = set()
        at: str | None = style_id
        while at in elements and at not in seen:
            seen.add(at)
            element = elements[at]
            name = value_of(child_of(element, "name")).lower()
            own = _read_properties(child_of(element, "pPr"))
            style.is_heading |= own.is_heading or name == "title" or name.startswith("heading ")
            style.list_id = own.list_id if style.list_id is None else style.list_id
            style.level = own.level if style.level is None else style.level
            at = value_of(child_of(element, "basedOn"))
        styles[style_id] = style
    return styles


def _read_properties(properties: etree._Element | None) -> _Style:
    numbering = child_of(properties, "numPr")
    outline = value_of(child_of(properties, "outlineLvl"))
    list_id, level = value_of(child_of(numbering, "numId")), value_of(child_of(numbering, "ilvl"))
    return _Style(
        is_heading=int_of(outline, _BODY_LEVEL) < _BODY_LEVEL,
        list_id=list_id or None,
        level=min(int_of(level, 0), _MAX_LEVEL) if level else None,
    )


@dataclass(slots=True)
class _Reader:
    """Walks the body and hands over its blocks."""

    styles: dict[str, _Style]
    numbers: ListNumbers
    writer: TextWriter = field(default_factory=TextWriter)
    _notes: dict[tuple[str, str], etree._Element] = field(default_factory=dict)
    _numbered: dict[tuple[str, str], int] = field(default_factory=dict)
    _in_list: bool = False
    # Found within a paragraph, and written after it.
    _cited: list[tuple[int, etree._Element]] = field(default_factory=list)
    _boxes: list[etree._Element] = field(default_factory=list)

    def add_notes(self, kind: str, root: etree._Element | None) -> None:
        """Take the footnotes or endnotes; those with a type are the lines above them."""
        for note in () if root is None else root:
            if local_name(note) == kind and not value_of(note, "type"):
                self._notes[kind, value_of(note, "id")] = note

    def read(self, parent: etree._Element) -> None:
        """Write all blocks of a body, a text box or a cell that is layout."""
        for block in _blocks(parent):
            if local_name(block) == "p":
                self._write_paragraph(block)
            else:
                self._write_table(block)
            self._write_attached()

    def _write_paragraph(self, paragraph: etree._Element) -> None:
        style = self._style(paragraph)
        text = "".join(self._inline(paragraph)).strip("\n")
        level = style.level or 0
        # Asked for before: an empty item has its number too.
        number = self.numbers.next(style.list_id, level)
        if not text.strip():
            return
        if style.is_heading:
            text = flatten(f"{number} {text}")
            self.writer.place(name_place("section", text))
        elif number:
            text = "  " * level + f"{number} {text.strip()}"
        is_item = bool(number) and not style.is_heading
        self.writer.add(text, tight=is_item and self._in_list)
        self._in_list = is_item

    def _write_table(self, table: etree._Element) -> None:
        rows = [list(_descend(row, "tc")) for row in _descend(table, "tr") if not _is_deleted(row)]
        # One column, or tables in tables: cells are boxes around text.
        is_layout = all(len(row) < 2 for row in rows) or any(
            next(_descend(cell, "tbl"), None) is not None for row in rows for cell in row
        )
        self._in_list = False
        is_first = True
        for row in rows:
            if is_layout:
                for cell in row:
                    self.read(cell)
                continue
            cells = [self._flatten_cell(cell) for cell in row]
            if any(cells):
                self.writer.add(" | ".join(cells), tight=not is_first)
                is_first = False

    def _flatten_cell(self, cell: etree._Element) -> str:
        lines = []
        for block in _blocks(cell):
            if local_name(block) == "tbl":
                rows = (row for row in _descend(block, "tr") if not _is_deleted(row))
                lines += [" | ".join(map(self._flatten_cell, _descend(row, "tc"))) for row in rows]
                continue
            style = self._style(block)
            number = self.numbers.next(style.list_id, style.level or 0)
            text = "".join(self._inline(block))
            if text.strip():
                lines.append(f"{number} {text}")
        return flatten(" ".join(lines))

    def _write_attached(self) -> None:
        """Write the notes and text boxes that the last block refers to."""
        while self._cited or self._boxes:
            cited, self._cited = self._cited, []
            boxes, self._boxes = self._boxes, []
            for number, note in cited:
                self.writer.add(f"[{number}] {self._flatten_cell(note)}")
            for box in boxes:
                self.read(box)

    def _style(self, paragraph: etree._Element) -> _Style:
        properties = child_of(paragraph, "pPr")
        base = self.styles.get(value_of(child_of(properties, "pStyle")), _Style())
        own = _read_properties(properties)
        return _Style(
            base.is_heading or own.is_heading,
            base.list_id if own.list_id is None else own.list_id,
            base.level if own.level is None else own.level,
        )

    def _inline(self, element: etree._Element) -> Iterator[str]:
        """Yield the text of everything in a paragraph; unknown wrappers are looked into."""
        for child in element:
            tag = local_name(child)
            if tag == "t":
                yield child.text or ""
            elif tag in _CHARACTERS:
                yield _CHARACTERS[tag]
            elif tag in ("footnoteReference", "endnoteReference"):
                yield self._cite(tag.removesuffix("Reference"), value_of(child, "id"))
            elif tag == "txbxContent":
                self._boxes.append(child)
            elif tag == "docPr" and (child.get("descr") or "").strip():
                yield f"[image: {flatten(child.get('descr') or '')}]"
            elif (
                tag == "r"
                and value_of(child_of(child_of(child, "rPr"), "vertAlign")) == "superscript"
            ):
                text = "".join(self._inline(child))
                # 10 to the 6th is not 106.
                yield f"^{text}" if _EXPONENT.match(text) else text
            elif tag in ("sup", "sub"):
                yield from ("^" if tag == "sup" else "_", *self._inline(child))
            elif tag == "f":
                parts = (part for part in child if local_name(part) in ("num", "den"))
                yield "/".join(f"({''.join(self._inline(part))})" for part in parts)
            elif tag not in _UNREAD:
                yield from self._inline(child)

    def _cite(self, kind: str, note_id: str) -> str:
        note = self._notes.get((kind, note_id))
        if note is None:
            return ""
        number = self._numbered.get((kind, note_id))
        if number is None:  # a note may cite itself: it is written once
            number = self._numbered[kind, note_id] = len(self._numbered) + 1
            self._cited.append((number, note))
        return f"[{number}]"


def _blocks(parent: etree._Element) -> Iterator[etree._Element]:
    """Yield paragraphs and tables, also those inside content controls and insertions."""
    for child in parent:
        tag = local_name(child)
        if tag in ("p", "tbl"):
            yield child
        elif tag in _WRAPPERS:
            yield from _blocks(child)


def _descend(parent: etree._Element, wanted: str) -> Iterator[etree._Element]:
    """Yield rows of a table or cells of a row, also those inside wrappers."""
    for child in parent:
        tag = local_name(child)
        if tag == wanted:
            yield child
        elif tag in _WRAPPERS:
            yield from _descend(child, wanted)


def _is_deleted(row: etree._Element) -> bool:
    return child_of(child_of(row, "trPr"), "del") is not None


def _note_left_out(parts: _Parts) -> Iterator[str]:
    """Say what a person sees in the document and the text does not hold."""
    for kind, what in _LEFT_OUT.items():
        if any("".join(_all_text(root)).strip() for root in parts.roots(kind)):
            yield f"{what} are left out"
    for kind, what in _DRAWN.items():
        if parts.count(kind):
            yield f"{what} are left out"


def _all_text(root: etree._Element) -> Iterator[str]:
    return (element.text or "" for element in root.iterdescendants() if local_name(element) == "t")
