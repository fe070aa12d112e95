"""Finds out what a file is, by its content first, and has it read as that."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from restkv_local.documents.archive import Archive
from restkv_local.documents.decoding import decode_text
from restkv_local.documents.document import Document, Kind, Mark
from restkv_local.errors import InputError

_Parts = tuple[str, tuple[Mark, ...], tuple[str, ...]]

_SUFFIXES: Final[dict[str, Kind]] = {
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".docx", ".docm", ".dotx"), "docx"),
    **{".pdf": "pdf", ".epub": "epub"},
}
_HTML: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--(?:(?!-->).)*-->\s*)*<(?:!doctype\s+html|html)\b",
    re.I | re.S,
)
_HTML_WITHIN: Final = 4096
# Some producers put a line before the header; readers of PDF look for it in as many bytes.
_PDF_WITHIN: Final = 1024

# Office files that are no text and none of ours: what they are, how they begin.
_FOREIGN: Final = {
    b"{\\rtf": "an RTF file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old or encrypted Office file",
}
# The same for zip files, by a member that each has.
_FOREIGN_ZIP: Final = {
    "xl/workbook.xml": "an Excel workbook",
    "ppt/presentation.xml": "a PowerPoint presentation",
    "content.xml": "an OpenDocument file",
}
# A film or a disk image by mistake: no text of this length is read in a day, and memory ends before.
MOST_BYTES: Final = 1 << 30
_WAY_OUT: Final = "which is not read; save it as DOCX, PDF or text"


def read_document(path: str | Path) -> Document:
    """Read a file: text, Markdown, HTML, PDF, DOCX or EPUB.

    Raises
    ------
    InputError
        It is missing, a directory, unreadable, empty, or nothing that can be read as text.
    """
    # Path.expanduser() would fail where ~NAME is nobody's home.
    file = Path(os.path.expanduser(path))
    # A model reads the name and a report holds it: a byte that is no UTF-8 is written as errors write it.
    name = str(file).encode(errors="backslashreplace").decode()
    try:
        status = file.stat()
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            raise InputError(f"{name} is a device, which has no end; give a file")
        if status.st_size > MOST_BYTES:
            raise InputError(
                f"{name} has {status.st_size / 2**30:,.1f} GiB, and at most {MOST_BYTES >> 30} GiB are read at once;"
                " give a part of it"
            )
        data = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name} is a directory; name each file in it") from None
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero character.
        reason = getattr(error, "strerror", None) or error
        # Windows denies permission where others say that it is a directory.
        if os.path.isdir(file):
            raise InputError(f"{name} is a directory; name each file in it") from None
        raise InputError(f"{name}: {reason}") from None
    return parse_document(data, name)


def parse_document(data: bytes, name: str) -> Document:
    """Read the bytes of a file.

    Parameters
    ----------
    data : bytes
        The whole file.
    name : str
        What the document and its errors call it; its suffix counts where the content does not tell.

    Raises
    ------
    InputError
        It is empty, broken, encrypted, or nothing that can be read as text.
    """
    kind = _find_kind(data, name)
    text, marks, notes = _reader_of(kind)(data, name)
    if not text.strip():
        reason = f" ({'; '.join(notes)})" if notes else ""
        raise InputError(f"{name} is empty{reason}; give a file with text in it")
    return Document(name, text, marks, kind, hashlib.sha256(data).hexdigest(), notes)


def _find_kind(data: bytes, name: str) -> Kind:
    """Tell what a file is: by how it begins, by what a zip file holds, then by its suffix."""
    by_suffix = _SUFFIXES.get(Path(name).suffix.lower(), "text")
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise InputError(f"{name} is {what}, {_WAY_OUT}")
    if data.startswith(b"%PDF-") or (by_suffix == "pdf" and b"%PDF-" in data[:_PDF_WITHIN]):
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return _find_zip_kind(data, name, by_suffix)
    if _HTML.match(data[:_HTML_WITHIN]):
        return "html"
    if by_suffix in ("pdf", "docx", "epub") and data.strip():
        raise InputError(
            f"{name} is not the {by_suffix.upper()} file that its name says; give it its right name, or get it again"
        )
    return by_suffix if by_suffix in ("markdown", "html") else "text"


def _find_zip_kind(data: bytes, name: str, by_suffix: Kind) -> Kind:
    members = Archive(data, name).members
    if "META-INF/container.xml" in members:
        return "epub"
    if any(member.startswith("word/document") for member in members):
        return "docx"
    for member, what in _FOREIGN_ZIP.items():
        if member in members:
            raise InputError(f"{name} is {what}, {_WAY_OUT}")
    if by_suffix in ("docx", "epub"):
        return by_suffix
    raise InputError(
        f"{name} is a zip archive of {len(members):,} files; unpack it and name each file in it"
    )


def _reader_of(kind: Kind) -> Callable[[bytes, str], _Parts]:
    # Late: plain text must not wait for the libraries of the other kinds.
    match kind:
        case "pdf":
            from restkv_local.documents.pdf import read_pdf

            return read_pdf
        case "docx":
            from restkv_local.documents.docx import read_docx

            return read_docx
        case "epub":
            from restkv_local.documents.epub import read_epub

            return read_epub
        case "html":
            from restkv_local.documents.html import read_html

            return read_html
        case _:
            return lambda data, name: (decode_text(data, name), (), ())
