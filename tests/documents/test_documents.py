"""Every kind of file: whole text, named places, one line for what cannot be read."""

import hashlib
import os
import subprocess
import sys
import time

import pytest
from document_files import (
    PLACES,
    SAMPLES,
    assert_places,
    make_docx,
    make_pdf,
    make_zip,
    read_or_refuse,
    refusal,
)
from fpdf import FPDF
from hypothesis import given, settings
from hypothesis import strategies as st

from restkv_local.documents import Document, Mark, parse_document, read_document
from restkv_local.errors import InputError


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path, name):
    kinds = {"txt": "text", "md": "markdown"}
    file = tmp_path / name
    file.write_bytes(SAMPLES[name])
    document = read_document(file)
    suffix = name.rpartition(".")[2]
    assert document.kind == kinds.get(suffix, suffix)
    assert document.name == str(file)
    assert document.sha256 == hashlib.sha256(SAMPLES[name]).hexdigest()
    if suffix not in kinds:
        assert parse_document(SAMPLES[name], "unnamed").text == document.text
    assert_places(document)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_text_is_written_as_text(tmp_path):
    """Of two files each is headed by its name, and no model can read half a character."""
    file = tmp_path / os.fsdecode(b"caf\xe9.html")
    file.write_bytes(SAMPLES["page.html"])
    document = read_document(file)
    assert document.name == str(tmp_path / "caf\\udce9.html")
    assert document.kind == "html"


@pytest.mark.parametrize("name", SAMPLES)
def test_every_character_has_a_place(name):
    document = parse_document(SAMPLES[name], name)
    for position in range(len(document.text)):
        assert document.locate(position).startswith(PLACES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_cut_off_anywhere_is_read_or_refused_with_one_line(name):
    @settings(max_examples=60, deadline=5000)
    @given(st.integers(0, len(SAMPLES[name])))
    def check(n):
        document = read_or_refuse(SAMPLES[name][:n], name)
        if document is not None:
            assert_places(document)

    check()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_with_wrong_bytes_is_read_or_refused_with_one_line(name):
    size = len(SAMPLES[name])

    @settings(max_examples=100, deadline=5000)
    @given(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), min_size=1, max_size=8)
    )
    def check(changes):
        data = bytearray(SAMPLES[name])
        for offset, byte in changes:
            data[offset] = byte
        document = read_or_refuse(bytes(data), name)
        if document is not None:
            assert_places(document)

    check()


@settings(max_examples=200, deadline=5000)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"%PDF-1.7\n", b"PK\x03\x04", b"<html>", b"<?xml version='1.0'?><html>"]),
    st.sampled_from(["a.txt", "a.md", "a.html", "a.xhtml", "a.pdf", "a.docx", "a.epub", "a"]),
)
def test_any_bytes_are_read_or_refused_with_one_line(data, magic, name):
    document = read_or_refuse(magic + data, name)
    if document is not None:
        assert document.text.strip()
        assert_places(document)


@given(st.text(alphabet="a \n", min_size=1).filter(str.strip), st.data())
def test_lines_are_counted_from_one(text, data):
    document = parse_document(text.encode(), "a.txt")
    position = data.draw(st.integers(0, len(text) - 1))
    assert document.text == text
    assert document.locate(position) == f"line {text[:position].count(chr(10)) + 1}"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_a_place_is_that_of_the_last_mark_before_it(lengths, data):
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    marks = tuple(Mark(start, f"page {i + 1}") for i, start in enumerate(starts))
    document = Document("x", "x" * sum(lengths), marks, "pdf", "")
    position = data.draw(st.integers(0, sum(lengths) - 1))
    assert document.locate(position) == f"page {sum(start <= position for start in starts)}"


def located(*labels):
    marks = tuple(Mark(2 * i, label) for i, label in enumerate(labels))
    return Document("x", "ab" * len(labels), marks, "html", "").locate(0, 2 * len(labels))


def test_a_stretch_is_named_from_its_first_to_its_last_place():
    assert located("page 3", "page 4") == "pages 3-4"
    assert located("page 3") == "page 3"
    assert located('section "A"', 'section "B"', 'section "C"') == 'sections "A" to "C"'
    assert located("the beginning", 'section "A"') == 'the beginning to section "A"'
    text = parse_document(b"a\nb\nc\n", "a.txt")
    assert text.locate(0, 2) == "line 1"  # the line end belongs to its line
    assert text.locate(2, 6) == "lines 2-3"
    assert text.locate(6, 6) == "line 4"


@pytest.mark.parametrize(("start", "end"), [(-1, None), (7, None), (2, 1), (0, 7)])
def test_a_place_outside_the_text_is_refused(start, end):
    with pytest.raises(ValueError, match="6 characters"):
        parse_document(b"a\nb\nc\n", "a.txt").locate(start, end)


def test_the_bytes_of_plain_text_are_kept():
    text = "\r\n  tabs\there \u00a0\u00ad \n\n\nend\n"
    assert parse_document(b"\xef\xbb\xbf" + text.encode(), "a.txt").text == text


@pytest.mark.parametrize(
    ("data", "name", "parts"),
    [
        (b"", "a.txt", ["empty"]),
        (b" \n", "a.pdf", ["empty"]),
        (b"<html><script>x</script></html>", "a.html", ["empty"]),
        (b"caf\xe9", "a.txt", ["UTF-8", "0xe9", "offset 3", "iconv"]),
        (b"a\0b", "a.txt", ["binary", "offset 1"]),
        ("text".encode("utf-16"), "a.txt", ["UTF-16", "iconv"]),
        (b"plain words", "a.pdf", ["not the PDF"]),
        (b"plain words", "a.docx", ["not the DOCX"]),
        (b"plain words", "a.epub", ["not the EPUB"]),
        (b"%PDF-1.7 and no more", "a.pdf", ["broken PDF"]),
        (b"PK\x03\x04 and no more", "a.docx", ["broken"]),
        (make_docx()[:-30], "a.docx", ["broken"]),
        (make_zip({"a.txt": "x"}), "a.docx", ["broken", "word/document.xml is missing"]),
        (make_zip({"a.txt": "x"}), "a.epub", ["broken", "META-INF/container.xml is missing"]),
        (make_zip({"a.txt": "x", "b": "y"}), "a.zip", ["zip archive of 2 files", "unpack"]),
        (make_zip({"xl/workbook.xml": "x"}), "a.xlsx", ["Excel", "save it as"]),
        (make_zip({"ppt/presentation.xml": "x"}), "a.docx", ["PowerPoint", "save it as"]),
        (make_zip({"content.xml": "x"}), "a.odt", ["OpenDocument", "save it as"]),
        (b"{\\rtf1 hello}", "a.rtf", ["RTF", "save it as"]),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a.doc", ["old or encrypted Office"]),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(data, name, parts):
    line = refusal(data, name)
    for part in parts:
        assert part in line


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_document(tmp_path / "none.pdf")
    with pytest.raises(InputError, match="is a directory"):
        read_document(tmp_path)
    with pytest.raises(InputError, match="null"):
        read_document("a\0b")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_an_unreadable_file_is_refused(tmp_path):
    file = tmp_path / "secret.pdf"
    file.write_bytes(SAMPLES["report.pdf"])
    file.chmod(0)
    with pytest.raises(InputError, match="ermission"):
        read_document(file)


def test_text_about_a_format_is_text():
    for text in (b"A file begins with %PDF-1.7.", b"Use <html> first.", b"PK is a zip."):
        assert parse_document(text, "notes.txt").kind == "text"


def test_no_file_takes_for_ever_to_recognise():
    """Each of these once had, or could have, a pattern try all ways to part it."""
    comments = b"<!---->" * 580 + b"no page"
    assert parse_document(comments, "a.txt").kind == "text"
    letters = b"a" * 500_000
    assert parse_document(make_pdf("infor-\nmation " + "a" * 3000), "a.pdf").text
    assert parse_document(b"<p>" + letters + b"<sup>" + letters, "a.html").text
    links = b"<a href=#>" * 1500 + letters
    assert parse_document(links, "a.html").text


def test_plain_text_waits_for_no_library():
    code = (
        "import sys; from restkv_local.documents import parse_document as p; p(b'x', 'a.md');"
        "print([m for m in ('lxml', 'pypdfium2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_three_hundred_pages_are_read_in_seconds():
    pdf = FPDF()
    pdf.set_font("Helvetica", size=11)
    for number in range(1, 301):
        pdf.add_page()
        for line in range(45):  # without line breaking, which takes most of the time
            pdf.text(10, 15 + 6 * line, f"Page {number}. The harbour was quiet on day {line}, too.")
    data = bytes(pdf.output())
    start = time.perf_counter()
    document = parse_document(data, "long.pdf")
    seconds = time.perf_counter() - start
    assert len(document.marks) == 300
    assert document.locate(document.text.index("Page 217.")) == "page 217"
    assert seconds < 10


def test_a_film_or_a_device_is_refused_before_it_is_read(tmp_path):
    film = tmp_path / "film.mkv"
    with film.open("wb") as stream:
        stream.truncate(12 << 30)  # takes no room
    with pytest.raises(InputError, match=r"film.mkv has 12.0 GiB, and at most 1 GiB are read"):
        read_document(film)
    if os.path.exists("/dev/zero"):
        with pytest.raises(InputError, match="is a device, which has no end"):
            read_document("/dev/zero")
