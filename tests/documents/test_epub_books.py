"""EPUB: chapters in the order of the spine, named as the book names them."""

import io
import zipfile

import pytest
from document_files import assert_places, make_epub, make_zip, refusal, xhtml

from restkv_local.documents import archive, parse_document

CHAPTERS = [
    "<h1>One</h1><p>Call me.</p>",
    "<p>Whales.</p>",
    "<h2>Two</h2><p>Sea.</p><h3>Deep</h3>x",
]


def read(*args, **kwargs):
    return parse_document(make_epub(*args, **kwargs), "a.epub")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("folder", ["", "OEBPS/", "a/b/"])
def test_chapters_come_in_the_order_of_the_spine(version, folder):
    document = read(CHAPTERS, version=version, folder=folder, spine=[2, 0, 1], titles={1: "Fish"})
    assert document.text == "Two\n\nSea.\n\nDeep\n\nx\n\nOne\n\nCall me.\n\nWhales."
    assert [mark.label for mark in document.marks] == [
        'chapter "Two"',
        'chapter "Deep"',
        'chapter "One"',
        'chapter "Fish"',
    ]
    assert document.notes == ()
    assert_places(document)


def test_a_chapter_without_any_title_has_its_number():
    document = read(["<p>a</p>", "<p>b</p>"])
    assert document.locate(0) == "part 1"
    assert document.locate(0, len(document.text)) == "parts 1-2"


def test_a_table_of_contents_in_the_spine_is_a_menu():
    extra = {"OEBPS/ch1.xhtml": xhtml('<nav><ol><li><a href="ch0.xhtml">One</a></li></ol></nav>')}
    assert read(CHAPTERS[:2], extra=extra).text == "One\n\nCall me."


def test_named_characters_are_read_without_their_dtd():
    assert read(["<p>caf&eacute;&nbsp;&mdash; &amp;amp; &lt;b&gt;</p>"]).text == "café — &amp; <b>"


def test_a_chapter_that_is_not_well_formed_is_read_all_the_same():
    assert read(["<p>a<b>b</p><br>c & d"]).text == "ab\n\nc & d"


def test_chapters_that_cannot_be_read_are_named():
    document = read(CHAPTERS, extra={"OEBPS/ch1.xhtml": None})
    assert document.notes == ("part 2 of the book is missing in the file",)
    opf = (
        '<package><manifest><item id="a" href="ch%200.xhtml"/><item id="b" href="b.svg"'
        ' media-type="image/svg+xml"/></manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>'
    )
    extra = {
        "OEBPS/book.opf": opf,
        "OEBPS/ch 0.xhtml": xhtml("<p>Words.</p>"),
        "OEBPS/b.svg": "<svg/>",
    }
    document = read([], extra=extra)
    assert document.text == "Words."
    assert document.notes == (
        "part 2 of the book, OEBPS/b.svg, is a picture or sound and left out",
    )


def test_names_inside_a_book_cannot_command_a_terminal():
    opf = (
        '<package><manifest><item id="a" href="%1b]0;x%07.svg" media-type="image/svg+xml"/></manifest>'
        '<spine><itemref idref="a"/><itemref idref="c"/></spine></package>'
    )
    extra = {"OEBPS/book.opf": opf, "OEBPS/\x1b]0;x\x07.svg": "<svg/>"}
    line = refusal(make_epub([], extra=extra), "a.epub")
    assert line.isprintable()
    assert "OEBPS/]0;x.svg" in line


def encrypted(member):
    return (
        '<encryption><EncryptedData><CipherData><CipherReference URI="'
        f'{member}"/></CipherData></EncryptedData></encryption>'
    )


def test_a_protected_book_is_refused_and_hidden_fonts_are_no_protection():
    book = make_epub(CHAPTERS, extra={"META-INF/encryption.xml": encrypted("OEBPS/ch1.xhtml")})
    assert "DRM" in refusal(book, "a.epub")
    book = make_epub(CHAPTERS, extra={"META-INF/encryption.xml": encrypted("OEBPS/a.otf")})
    assert "Whales." in parse_document(book, "a.epub").text


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"META-INF/container.xml": "<container/>"}, "names no book"),
        ({"META-INF/container.xml": "no"}, "META-INF/container.xml: "),
        ({"OEBPS/book.opf": None}, "OEBPS/book.opf is missing"),
        ({"OEBPS/book.opf": "<package/>"}, "lists no chapters"),
        (
            dict.fromkeys(f"OEBPS/ch{i}.xhtml" for i in range(3)),
            "empty (part 1 of the book is missing",
        ),
        ({"OEBPS/ch0.xhtml": b"<p>caf\xe9</p>"}, "OEBPS/ch0.xhtml is not UTF-8"),
        (
            {"OEBPS/ch0.xhtml": "<div>" * 3000 + "a"},
            "OEBPS/ch0.xhtml cannot be read whole: Excessive depth",
        ),
    ],
)
def test_a_broken_book_says_where(extra, part):
    assert part in refusal(make_epub(CHAPTERS, extra=extra), "a.epub")


def test_entities_of_a_book_are_not_expanded():
    page = (
        '<?xml version="1.0"?><!DOCTYPE html [<!ENTITY f SYSTEM "file:///etc/hostname">]>'
        "<html><body><p>a &f; b</p></body></html>"
    )
    assert read(["x"], extra={"OEBPS/ch0.xhtml": page}).text.endswith("a &f; b")


def test_all_parts_together_are_limited(monkeypatch):
    monkeypatch.setattr(archive, "TOTAL_MAX", 50_000)
    book = make_epub(["<p>" + "word " * 4000 + "</p>"] * 4)
    assert "all parts beyond" in refusal(book, "a.epub")


def test_a_size_that_lies_is_found_out():
    """The header's size is only a claim: what comes out is counted, and held against the checksum."""
    data = make_zip({"META-INF/container.xml": b"x" * 10_000})
    claimed = data.replace((10_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert claimed != data
    assert "broken" in refusal(claimed, "a.epub")


def test_a_book_with_a_password_is_refused():
    data = bytearray(make_epub(CHAPTERS))
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        offset = book.getinfo("META-INF/container.xml").header_offset
    data[offset + 6] |= 1
    central = data.index(b"META-INF/container.xml", data.index(b"PK\x01\x02")) - 46
    data[central + 8] |= 1
    assert "encrypted" in refusal(bytes(data), "a.epub")


def with_headers(data, at_flags, value):
    """A zip file whose local and central headers say something else at these places."""
    data = bytearray(data)
    for mark, place in ((b"PK\x03\x04", at_flags), (b"PK\x01\x02", at_flags + 2)):
        start = data.find(mark)
        while start >= 0:
            data[start + place] = value
            start = data.find(mark, start + 1)
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "words"), [(6, 1, "without a password"), (8, 99, "is broken: ")]
)
def test_what_zip_cannot_open_is_one_line(at, value, words):
    """Encrypted members, and a compression method that Python does not know."""
    assert words in refusal(with_headers(make_epub(CHAPTERS), at, value), "a.epub")
