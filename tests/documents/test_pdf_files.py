"""PDF: pages in order, words whole, and what is missing said."""

import pypdfium2 as pdfium
import pytest
from document_files import make_form, make_pdf, refusal
from fpdf import FPDF

from restkv_local.documents import parse_document
from restkv_local.documents.pdf import _join_pages
from restkv_local.errors import InputError


def read(*pages, **kwargs):
    return parse_document(make_pdf(*pages, **kwargs), "a.pdf")


def test_pages_are_places_in_their_order():
    document = read("One.", "Two.\nMore.", "Three.")
    assert document.text == "One.\n\nTwo.\nMore.\n\nThree."
    assert document.locate(document.text.index("More")) == "page 2"
    assert document.locate(0, len(document.text)) == "pages 1-3"
    assert document.notes == ()


def test_pages_without_text_are_named():
    document = read("One.", "", "", "Four.", "")
    assert document.notes == ("pages 2-3, 5 hold no text (scanned?)",)
    assert document.locate(document.text.index("Four")) == "page 4"
    assert read("One.", "").notes == ("page 2 holds no text (scanned?)",)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("much infor-\nmation here", "much information here"),
        ("a well-\nknown sign, so well-known", "a well-known sign, so well-known"),
        ("he met Jean-\nPaul there", "he met Jean-Paul there"),
        ("see sheet A4-\n210 for it", "see sheet A4-\n210 for it"),
    ],
)
def test_a_hyphen_goes_only_when_it_came_with_the_line_end(text, whole):
    assert whole in read(text).text


@pytest.mark.parametrize("compress", [False, True])
def test_a_pdf_that_was_cut_off_says_so(compress):
    data = make_pdf("One.", "Two.", compress=compress)
    document = parse_document(data[: data.index(b"startxref")], "a.pdf")
    assert document.text == "One.\n\nTwo."
    assert "may be cut off" in document.notes[0]


def test_fields_that_were_filled_in_and_comments_are_read():
    assert parse_document(make_form("Ada Lovelace"), "a.pdf").text == "Name:\nname: Ada Lovelace"
    assert parse_document(make_form(""), "a.pdf").text == "Name:"
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("Helvetica", size=12)
    pdf.cell(0, 10, "Body.")
    pdf.free_text_annotation("Typed on it", x=20, y=60, w=60, h=20)
    pdf.text_annotation(50, 50, "Check this")
    pdf.cell(0, 10, "link", link="https://example.org")
    text = parse_document(bytes(pdf.output()), "a.pdf").text
    assert text.endswith("\nTyped on it\n[comment] Check this")


def test_an_encrypted_pdf_is_refused_unless_anyone_may_open_it():
    assert "encrypted" in refusal(make_pdf("Secret.", password="x"), "a.pdf")
    assert read("Open.", password="").text == "Open."


def test_a_pdf_of_pictures_is_refused():
    assert "no text on its 2 pages" in refusal(make_pdf("", ""), "scan.pdf")
    assert "no text on its 1 page," in refusal(make_pdf(""), "scan.pdf")


def test_a_line_before_the_header_does_no_harm():
    assert parse_document(b"\n \n" + make_pdf("One."), "a.pdf").text == "One."


def test_pages_that_nobody_can_read_are_named():
    pages = ["Good words.", None, "\ue001\ue002\ufffd words", None, None]
    text, marks, notes = _join_pages(pages, "a.pdf", is_whole=True)
    assert text.startswith("Good words.\n\n")
    assert [mark.label for mark in marks] == ["page 1", "page 3"]
    assert notes == (
        "pages 2, 4-5 cannot be read",
        "page 3 has a font without readable characters",
    )
    with pytest.raises(InputError, match="without a readable page"):
        _join_pages([None], "a.pdf", is_whole=True)


def test_an_xfa_form_is_read_as_far_as_it_goes_and_says_so(caplog):
    document = parse_document(make_form("Ada Lovelace", is_xfa=True), "a.pdf")
    assert document.text == "Name:\nname: Ada Lovelace"
    assert [note for note in document.notes if "XFA form" in note]
    assert not caplog.records


def test_a_form_that_cannot_be_opened_costs_its_fields_alone(monkeypatch):
    def fail(_self):
        raise pdfium.PdfiumError("no form environment")

    monkeypatch.setattr(pdfium.PdfDocument, "init_forms", fail)
    document = parse_document(make_form("Ada Lovelace"), "a.pdf")
    assert document.text == "Name:"
    assert "its fields are missing" in document.notes[0]
