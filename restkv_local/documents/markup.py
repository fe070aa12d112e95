"""Turns HTML and XHTML into blocks of text, as a person would read them down the page."""

from __future__ import annotations

import re
from html.entities import html5
from itertools import islice
from typing import Final

from lxml import etree

from restkv_local.documents.numbering import format_number
from restkv_local.documents.writer import TextWriter, flatten, name_place
from restkv_local.documents.xml import local_name
from restkv_local.errors import InputError


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HEADINGS: Final = _names("h1 h2 h3 h4 h5 h6")
_BLOCKS: Final = _HEADINGS | _names(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset"
    " figcaption figure footer form header hgroup hr html legend li main menu ol p pre"
    " search section summary table tbody td textarea tfoot th thead tr ul"
)
_LISTS: Final = _names("dir menu ol ul")
# Nothing here is text of the page: programs, controls, drawings, what browsers show without support.
_SKIPPED: Final = _names(
    "audio button canvas head iframe noembed noframes noscript rp script select style svg template video"
)
# A heading or a table that holds one of these is layout: on one line it could not be read.
_TALL: Final = _HEADINGS | {"table", "pre"}
_NUMBER_STYLES: Final = {
    "a": "lower-letter",
    "A": "upper-letter",
    "i": "lower-roman",
    "I": "upper-roman",
}

_SPACES: Final = re.compile(r"[ \t\n\r\f]+")
_HIDDEN: Final = re.compile(r"display\s*:\s*none", re.IGNORECASE)
# The signs that web pages put at headings, to link to them; "§ 5" and "C#" are none.
_ANCHOR: Final = re.compile(r"^[¶§#](?=[^\W\d])|\s*¶$|\s+[§#]$")
_NOTE_MARK: Final = re.compile(r"\s*(?:[0-9]{1,4}|[*†‡])\s*")
_EXPONENT: Final = re.compile(r"\s*[-+−]?\d")
_ENTITY: Final = re.compile(r"&([A-Za-z][A-Za-z0-9]*);")
_XML_ENTITIES: Final = _names("amp lt gt quot apos")


def parse_markup(text: str, name: str, *, is_xml: bool) -> etree._Element | None:
    """Build the tree of a page: nothing is loaded, no entity of its own is expanded.

    Parameters
    ----------
    text : str
        The page.
    name : str
        What an error calls it.
    is_xml : bool
        Read it as XML, where ``<title/>`` is complete, and as HTML only if it is not well-formed.

    Returns
    -------
    lxml element or None
        None for a page without anything.

    Raises
    ------
    InputError
        If it is nested too deeply: the parser would leave out the rest without a word.
    """
    if is_xml:
        # XHTML's named characters stand in a DTD that is not loaded.
        data = _ENTITY.sub(_expand_entity, text).encode("utf-8", "replace")
        strict = etree.XMLParser(
            encoding="utf-8",
            resolve_entities=False,
            load_dtd=False,
            no_network=True,
            remove_comments=True,
            remove_pis=True,
        )
        try:
            root = etree.fromstring(data, strict)
        except etree.XMLSyntaxError:
            pass
        else:
            # An entity of the page's own stays unexpanded, and iterwalk passes over what follows it.
            if next(root.iter(etree.Entity), None) is None:
                return root
    # huge_tree: the depth limit is 2,048 then, not 256, and long texts are not cut.
    lenient = etree.HTMLParser(
        encoding="utf-8", huge_tree=True, no_network=True, remove_comments=True, remove_pis=True
    )
    root = etree.fromstring(text.encode("utf-8", "replace"), lenient)
    for entry in lenient.error_log:
        if entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT:
            raise InputError(
                f"{name} cannot be read whole: {entry.message.partition(',')[0]}; save it as plain text"
            )
    return root


def write_markup(root: etree._Element, writer: TextWriter, noun: str) -> bool:
    """Write a page's text; each heading begins a place.

    Parameters
    ----------
    root : lxml element
        The page.
    writer : TextWriter
        Takes the blocks.
    noun : str
        What a heading names: ``"section"`` or ``"chapter"``.

    Returns
    -------
    bool
        Whether menus (``nav``) were left out.
    """
    reader = _Reader(writer, noun)
    walk = etree.iterwalk(root, events=("start", "end"))
    for event, element in walk:
        tag = local_name(element)
        if event == "start" and reader.skips(element, tag):
            walk.skip_subtree()
        elif event == "start":
            reader.start(element, tag)
        else:
            reader.end(element, tag)
            if element is not root:
                reader.text(element.tail)
    reader.flush()
    return reader.left_out_menus


class _Reader:
    """Follows the tree: collects a line until a block ends, then hands it over."""

    def __init__(self, writer: TextWriter, noun: str) -> None:
        self._writer = writer
        self._noun = noun
        self._line: list[str] = []
        self._skipped: set[etree._Element] = set()
        self._pre = 0
        # Inside a heading or a table cell blocks are parts of one line.
        self._flat: list[etree._Element] = []
        self._tables: list[bool] = []  # of the open tables: whether rows become lines
        self._cells: list[str] | None = None
        self._rows_written = False
        self._lists: list[
            tuple[str, int]
        ] = []  # of the open lists: number style or "", next number
        self._bullet = ""
        self._in_list = False
        self._note_marks: set[etree._Element] = set()
        self.left_out_menus = False

    def skips(self, element: etree._Element, tag: str) -> bool:
        """Tell whether an element is no part of the text."""
        is_menu = tag == "nav" or element.get("role") == "navigation"
        if is_menu and "".join(map(str, element.itertext())).strip():
            self.left_out_menus = True
        is_hidden = element.get("hidden") is not None or _HIDDEN.search(element.get("style") or "")
        if is_menu or is_hidden or tag in _SKIPPED:
            if tag in _BLOCKS or is_menu:
                self._break(tag)
            self._skipped.add(element)
            return True
        return False

    def start(self, element: etree._Element, tag: str) -> None:
        """Take the beginning of an element, with the text that follows it."""
        if tag in _BLOCKS:
            self._break(tag)
        if tag in _HEADINGS and not self._flat and not _holds(element, *_TALL):
            self._flat.append(element)
        elif tag == "table":
            self._tables.append(not _holds(element, *_TALL))
            self._rows_written = False
        elif tag == "tr" and self._reads_rows():
            self._end_row()  # of cells outside any row
            self._cells = []
        elif tag in ("td", "th") and self._reads_rows():
            if self._cells is None:  # a cell outside any row
                self._cells = []
            self._flat.append(element)
        elif tag in _LISTS:
            self._open_list(element, tag)
        elif tag == "li":
            self._open_item(element)
        elif tag == "pre":
            self._pre += 1
        elif tag == "br":
            self._line.append(" " if self._flat else "\n")
        elif tag == "img" and (element.get("alt") or "").strip():
            self._line.append(f"[image: {flatten(element.get('alt') or '')}]")
        elif tag == "a" and self._is_note_mark(element):
            self._line.append("[")
            self._note_marks.add(element)
        elif tag == "sup" and _EXPONENT.match(_start_of_text(element)):
            # 10<sup>6</sup> is not 106.
            self._line.append("" if self._note_marks or _holds(element, "a") else "^")
        elif tag == "q":
            self._line.append('"')
        self.text(element.text)

    def end(self, element: etree._Element, tag: str) -> None:
        """Take the end of an element."""
        if element in self._skipped:
            self._skipped.discard(element)
            return
        if element in self._note_marks:
            self._note_marks.discard(element)
            self._line.append("]")
        elif tag == "q":
            self._line.append('"')
        elif tag in _HEADINGS and self._flat and self._flat[-1] is element:
            self._flat.pop()
            self._line = [title := flatten(_ANCHOR.sub("", flatten("".join(self._line))))]
            if title:
                self._writer.place(name_place(self._noun, title))
        elif tag in ("td", "th") and self._flat and self._flat[-1] is element:
            self._flat.pop()
            self._end_cell()
        elif tag == "tr" and self._reads_rows():
            self._end_row()
        elif tag == "table":
            self._end_row()
            self._tables.pop()
        if tag in _BLOCKS:
            self._break(tag)
        if tag == "pre":
            self._pre -= 1
        elif tag == "li":
            self._bullet = ""
        elif tag in _LISTS and self._lists:
            self._lists.pop()
            self._in_list = bool(self._lists)

    def text(self, text: str | None) -> None:
        """Take text; outside ``pre`` a run of spaces and line ends is one space."""
        if text:
            self._line.append(text if self._pre and not self._flat else _SPACES.sub(" ", text))

    def flush(self) -> None:
        """Hand the line over as a block."""
        text, self._line = "".join(self._line), []
        if not self._pre:
            lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
            text = "\n".join(lines).strip("\n")
        if not text.strip():
            return
        indent = "  " * max(0, len(self._lists) - 1)
        bullet, self._bullet = self._bullet, ""
        if self._lists and not self._pre:
            hang = " " * len(bullet) if bullet else "  "
            text = indent + (bullet or hang) + text.replace("\n", "\n" + indent + hang)
        elif bullet:
            text = f"{indent}{bullet}{text}"
        self._writer.add(text, tight=bool(bullet) and self._in_list)
        self._in_list = bool(self._lists)

    def _break(self, tag: str) -> None:
        if self._flat:
            self._line.append(" ")
        elif self._pre and tag != "pre":
            if self._line and not self._line[-1].endswith("\n"):
                self._line.append("\n")
        elif self._cells is not None and not self._is_blank():
            self._end_cell()  # text between cells, which no page should have
        else:
            self.flush()

    def _is_blank(self) -> bool:
        return not "".join(self._line).strip()

    def _reads_rows(self) -> bool:
        return bool(self._tables) and self._tables[-1]

    def _end_cell(self) -> None:
        cell, self._line = flatten("".join(self._line)), []
        if self._cells is None:  # a row that stands within a cell has ended it
            self._cells = []
        self._cells.append(cell)

    def _end_row(self) -> None:
        if self._cells is None:
            return
        if not self._is_blank():
            self._end_cell()
        cells, self._cells = self._cells, None
        if any(cells):
            self._writer.add(" | ".join(cells), tight=self._rows_written)
            self._rows_written = True

    def _open_list(self, element: etree._Element, tag: str) -> None:
        style = _NUMBER_STYLES.get(element.get("type") or "", "decimal") if tag == "ol" else ""
        self._lists.append((style, _read_int(element.get("start"), 1)))

    def _open_item(self, element: etree._Element) -> None:
        if not self._lists:
            self._bullet = "- "
            return
        style, number = self._lists[-1]
        number = _read_int(element.get("value"), number)
        self._lists[-1] = (style, number + 1)
        self._bullet = f"{format_number(number, style)}. " if style else "- "

    def _is_note_mark(self, link: etree._Element) -> bool:
        """Tell whether a link is the mark of a note: a number, raised or touching a word."""
        if not _NOTE_MARK.fullmatch(_start_of_text(link)):
            return False
        before = next((piece for piece in reversed(self._line) if piece), "")
        parent = link.getparent()
        if (parent is not None and local_name(parent) == "sup") or _holds(link, "sup"):
            return not before.endswith("[")
        return before[-1:].strip() not in ("", "(", "[")


def _start_of_text(element: etree._Element) -> str:
    """Return the first pieces of an element's text: all of it where it is as short as a number."""
    return "".join(map(str, islice(element.itertext(), 8)))


def _holds(element: etree._Element, *tags: str) -> bool:
    return any(local_name(child) in tags for child in element.iterdescendants())


def _read_int(text: str | None, default: int) -> int:
    text = (text or "").strip()
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else default


def _expand_entity(match: re.Match[str]) -> str:
    if match[1] in _XML_ENTITIES:
        return match[0]
    return html5.get(match[1] + ";", match[0])
