"""Reads a PDF, each page a place.

PDFium reads them: the engine of a browser, so broken files are its daily bread, under a permissive
licence, in wheels for every platform. pypdf, in pure Python, took three to eleven times as long on
five files and glued words together where the font changes.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Final

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from restkv_local.documents.document import Mark
from restkv_local.documents.writer import TextWriter, list_numbers
from restkv_local.errors import InputError

# PDFium puts this in place of a hyphen and the line end after it.
# Bounded: a run of letters may be as long as the page, and each would be tried as the beginning.
_LINE_END_HYPHEN: Final = re.compile("(\\w{0,40})\\x02(\\w{0,40})")
# Letters that fonts draw as one: no tokenizer knows them, no search finds them.
_LIGATURES: Final = {
    code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)
}
# Boxes that were not ticked, and fields left empty.
_UNFILLED: Final = ("", "Off")
_NO_COMMENTS: Final = (
    pdfium_c.FPDF_ANNOT_WIDGET,
    pdfium_c.FPDF_ANNOT_LINK,
    pdfium_c.FPDF_ANNOT_POPUP,
)
# Their fields are XML, which needs a build of PDFium with a script engine.
_XFA_FORMS: Final = (pdfium_c.FORMTYPE_XFA_FULL, pdfium_c.FORMTYPE_XFA_FOREGROUND)
_XFA_NOTE: Final = ("the PDF is an XFA form: what was filled in may be missing; print it to a PDF",)
_WORDS: Final = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
# What a font without a map to Unicode gives.
_UNREADABLE: Final = re.compile("[\x01\x03-\x08\x0e-\x1f\ufffd\ue000-\uf8ff]")
_UNREADABLE_SHARE: Final = 0.2

# It advises to build pypdfium2 anew; the note says what a reader can do.
logging.getLogger("pypdfium2").setLevel(logging.ERROR)


def read_pdf(data: bytes, name: str) -> tuple[str, tuple[Mark, ...], tuple[str, ...]]:
    """Return text, marks and notes of a PDF.

    Raises
    ------
    InputError
        If it is encrypted, broken, or holds no text at all.
    """
    try:
        document = pdfium.PdfDocument(data)
        n_pages = len(document)
    except pdfium.PdfiumError as error:
        code = getattr(error, "err_code", None)
        if code in (pdfium_c.FPDF_ERR_PASSWORD, pdfium_c.FPDF_ERR_SECURITY):
            raise InputError(
                f"{name} is an encrypted PDF; save a copy without a password"
            ) from None
        raise InputError(
            f"{name} is a broken PDF that cannot be opened; get it or save it again"
        ) from None
    try:
        form = document.get_formtype()
        form_notes = _XFA_NOTE if form in _XFA_FORMS else ()
        if form != pdfium_c.FORMTYPE_NONE:
            try:
                document.init_forms()
            except pdfium.PdfiumError:
                form_notes = ("the PDF has a form that cannot be opened: its fields are missing",)
        pages = [_read_page(document, index) for index in range(n_pages)]
    finally:
        document.close()
    text, marks, notes = _join_pages(pages, name, is_whole=b"%%EOF" in data[-1024:])
    return text, marks, (*notes, *form_notes)


def _read_page(document: pdfium.PdfDocument, index: int) -> str | None:
    """Return a page's text with PDFium's own hyphens; None if the page cannot be read."""
    try:
        page = document[index]
        text = str(page.get_textpage().get_text_bounded())
        # Not by flattening them into the page: on some files PDFium then finds no text at all.
        lines = [text, *_read_annotations(document, page)]
        page.close()
    except pdfium.PdfiumError:
        return None
    return "\n".join(lines).replace("\r\n", "\n").replace("\r", "\n").translate(_LIGATURES)


def _read_annotations(document: pdfium.PdfDocument, page: pdfium.PdfPage) -> Iterator[str]:
    """Yield what was put onto a page, a line each: ``name: value`` of a form's field, and comments."""
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
        kind = pdfium_c.FPDFAnnot_GetSubtype(annotation)
        if kind == pdfium_c.FPDF_ANNOT_WIDGET and document.formenv is not None:
            value = _read_string(pdfium_c.FPDFAnnot_GetFormFieldValue, document.formenv, annotation)
            name = _read_string(pdfium_c.FPDFAnnot_GetFormFieldName, document.formenv, annotation)
            if value not in _UNFILLED:
                yield f"{name}: {value}"
        elif kind not in _NO_COMMENTS:
            text = _read_string(pdfium_c.FPDFAnnot_GetStringValue, annotation, b"Contents")
            if text:
                yield text if kind == pdfium_c.FPDF_ANNOT_FREETEXT else f"[comment] {text}"
        pdfium_c.FPDFPage_CloseAnnot(annotation)


def _read_string(function: Callable[..., int], *arguments: Any) -> str:
    """Call a function that fills a buffer with UTF-16, a zero at its end; without one it tells the size."""
    n_bytes = function(*arguments, None, 0)
    buffer = (pdfium_c.FPDF_WCHAR * (n_bytes // 2))()
    function(*arguments, buffer, n_bytes)
    return bytes(buffer).decode("utf-16-le", "replace").rstrip("\0").strip()


def _join_pages(
    pages: list[str | None], name: str, *, is_whole: bool
) -> tuple[str, tuple[Mark, ...], tuple[str, ...]]:
    """Put the pages together and say what is missing."""
    known = {word for text in pages if text for word in _WORDS.findall(text)}
    writer = TextWriter()
    broken, blank, unreadable = [], [], []
    for number, text in enumerate(pages, start=1):
        writer.place(f"page {number}")
        if text is None:
            broken.append(number)
        elif not writer.add(_join_hyphens(text, known)):
            blank.append(number)
        elif len(_UNREADABLE.findall(text)) > _UNREADABLE_SHARE * len(text):
            unreadable.append(number)
    notes = []
    if not is_whole:
        notes.append("the PDF does not end as one: it may be cut off, pages may be missing")
    notes += _note_pages(broken, "cannot be read", "cannot be read")
    notes += _note_pages(blank, "holds no text (scanned?)", "hold no text (scanned?)")
    notes += _note_pages(
        unreadable,
        "has a font without readable characters",
        "have fonts without readable characters",
    )
    text, marks = writer.finish()
    if not text:
        if broken or not pages:
            raise InputError(
                f"{name} is a broken PDF without a readable page; get it or save it again"
            )
        raise InputError(
            f"{name} holds no text on its {len(pages):,} page{'' if len(pages) == 1 else 's'}, perhaps"
            " pictures of text; recognise it first (ocrmypdf)"
        )
    return text, marks, tuple(notes)


def _note_pages(numbers: list[int], one: str, many: str) -> list[str]:
    if not numbers:
        return []
    return [
        f"page {numbers[0]} {one}" if len(numbers) == 1 else f"pages {list_numbers(numbers)} {many}"
    ]


def _join_hyphens(text: str, known: set[str]) -> str:
    """Join words that a line end has parted; the hyphen stays unless it came with the line end.

    Only small letters on both sides are joined, because of Jean-Paul and A4-210; and not where the
    document writes the word with a hyphen elsewhere, and never without.
    """

    def join(match: re.Match[str]) -> str:
        left, right = match.groups()
        whole, parted = left + right, f"{left}-{right}"
        if not (left[-1:].islower() and right[:1].islower()):
            return parted
        return parted if parted in known and whole not in known else whole

    return _LINE_END_HYPHEN.sub(join, text)
