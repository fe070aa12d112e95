"""Reads a web page: its text without menus and programs, its headings as places."""

from __future__ import annotations

import re
from typing import Final

from restkv_local.documents.decoding import decode_markup
from restkv_local.documents.document import Mark
from restkv_local.documents.markup import parse_markup, write_markup
from restkv_local.documents.writer import TextWriter

_IS_XML: Final = re.compile(r"\s*<\?xml\b")


def read_html(data: bytes, name: str) -> tuple[str, tuple[Mark, ...], tuple[str, ...]]:
    """Return text, marks and notes of a page.

    Raises
    ------
    InputError
        If its characters cannot be decoded, or it is nested too deeply.
    """
    text = decode_markup(data, name)
    writer = TextWriter()
    root = parse_markup(text, name, is_xml=bool(_IS_XML.match(text)))
    left_out_menus = root is not None and write_markup(root, writer, "section")
    return *writer.finish(), ("menus (nav) are left out",) if left_out_menus else ()
