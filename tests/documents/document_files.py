"""Small real files of every kind, as bytes, and what must hold for each of them."""

from __future__ import annotations

import io
import zipfile

import docx
import pytest
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls
from fpdf import FPDF

from restkv_local.documents import parse_document
from restkv_local.errors import InputError

W = nsdecls("w")
PLACES = ("line ", "page ", "section ", "chapter ", "paragraph ", "part ", "the beginning")


def refusal(data, name):
    with pytest.raises(InputError) as caught:
        parse_document(data, name)
    line = str(caught.value)
    assert "\n" not in line
    assert name.split("/")[-1] in line
    return line


def read_or_refuse(data, name):
    """A document, or None for one clean refusal; anything else is a failure."""
    line = ""
    try:
        return parse_document(data, name)
    except InputError as error:
        line = str(error)
    assert "\n" not in line
    return None


def assert_places(document):
    assert all(a.start < b.start for a, b in zip(document.marks, document.marks[1:], strict=False))
    assert not document.marks or document.marks[0].start == 0
    for position in {0, len(document.text) // 2, len(document.text) - 1}:
        assert document.locate(position).startswith(PLACES)
    assert document.locate(0, len(document.text))


def make_pdf(*pages, password=None, compress=True):
    """One page for each text; an empty text makes a page with a line drawn on it."""
    pdf = FPDF()
    pdf.set_compression(compress)
    pdf.set_font("Helvetica", size=11)
    if password is not None:
        pdf.set_encryption(owner_password="owner", user_password=password)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, 6, text)
        else:
            pdf.line(10, 10, 100, 100)
    return bytes(pdf.output())


def make_zip(members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def make_epub(chapters, *, version=3, titles=None, spine=None, extra=None, folder="OEBPS/"):
    """An EPUB of XHTML bodies; ``titles`` go to its table of contents."""
    names = [f"ch{i}.xhtml" for i in range(len(chapters))]
    titles = titles or {}
    links = [(names[i], title) for i, title in titles.items()]
    nav = "".join(f'<li><a href="{name}#top">{title}</a></li>' for name, title in links)
    ncx = "".join(
        f'<navPoint id="n{i}"><navLabel><text>{title}</text></navLabel><content src="{name}"/></navPoint>'
        for i, (name, title) in enumerate(links)
    )
    manifest = "".join(
        f'<item id="c{i}" href="{name}" media-type="application/xhtml+xml"/>'
        for i, name in enumerate(names)
    )
    if version == 3:
        manifest += (
            '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>'
        )
        toc = {f"{folder}nav.xhtml": xhtml(f'<nav epub:type="toc"><ol>{nav}</ol></nav>')}
    else:
        manifest += '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
        toc = {
            f"{folder}toc.ncx": '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>'
            f"{ncx}</navMap></ncx>"
        }
    order = range(len(chapters)) if spine is None else spine
    itemrefs = "".join(f'<itemref idref="c{i}"/>' for i in order)
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<?xml version="1.0"?>'
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
        f'<rootfile full-path="{folder}book.opf"/></rootfiles></container>',
        f"{folder}book.opf": '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf">'
        f'<manifest>{manifest}</manifest><spine toc="ncx">{itemrefs}</spine></package>',
        **toc,
        **{folder + name: xhtml(body) for name, body in zip(names, chapters, strict=True)},
        **(extra or {}),
    }
    return make_zip({name: data for name, data in members.items() if data is not None})


def xhtml(body):
    return (
        '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN"'
        ' "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd"><html xmlns="http://www.w3.org/1999/xhtml"'
        f' xmlns:epub="http://www.idpf.org/2007/ops"><head><title/></head><body>{body}</body></html>'
    )


def save_docx(document):
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def make_docx():
    """A report with headings, lists, a table and a link."""
    document = docx.Document()
    document.add_paragraph("Written in May.")
    document.add_heading("Methods", 1)
    document.add_paragraph("We counted boats.")
    document.add_paragraph("red", style="List Bullet")
    document.add_paragraph("blue", style="List Bullet")
    document.add_paragraph("first", style="List Number")
    document.add_paragraph("second", style="List Number")
    document.add_heading("Results", 2)
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("boat", "count", "red", "12"), strict=True):
        cell.text = text
    document.add_paragraph("They were many.")
    return save_docx(document)


def add_xml(document, body):
    """Put raw WordprocessingML at the end of a document's body."""
    holder = parse_xml(f"<w:body {W} {nsdecls('m', 'wp', 'a')}>{body}</w:body>")
    for element in list(holder):
        document.element.body.insert(len(document.element.body) - 1, element)


def patch_docx(data, changes):
    """Rewrite members: text by function, or new ones by text; None removes one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, change in changes.items():
        members[name] = change(members[name]) if callable(change) else change
    return make_zip({name: data for name, data in members.items() if data is not None})


def add_part(data, kind, text):
    """Add a part that the main part refers to, such as ``footnotes``."""
    relation = (
        f'<Relationship Id="rx{kind}" Target="{kind}.xml" Type="http://schemas.openxmlformats.org/'
        f'officeDocument/2006/relationships/{kind}"/></Relationships>'
    ).encode()
    return patch_docx(
        data,
        {
            "word/_rels/document.xml.rels": lambda old: old.replace(b"</Relationships>", relation),
            f"word/{kind}.xml": text,
        },
    )


HTML = """<!doctype html><html><head><title>Boats</title><style>p{}</style></head><body>
<nav><a href="/">Home</a></nav><p>Written in May.</p><h1>Methods</h1><p>We counted
<b>boats</b>.</p><ul><li>red</li><li>blue</li></ul><h2>Results</h2><table><tr><th>boat</th>
<th>count</th></tr><tr><td>red</td><td>12</td></tr></table><script>let x = 1;</script></body></html>
"""

SAMPLES = {
    "notes.txt": b"one\ntwo\n\nthree and \xc3\xa9\n",
    "notes.md": b"# One\n\n- two\n",
    "page.html": HTML.encode(),
    "report.pdf": make_pdf("First page.", "Second page."),
    "report.docx": make_docx(),
    "book.epub": make_epub(["<h1>One</h1><p>Call me.</p>", "<h1>Two</h1><p>Whales.</p>"]),
}


def make_form(value, *, is_xfa=False):
    """A page with one text field, written by hand: no library that the tests have makes forms."""
    xfa = "/XFA 8 0 R" if is_xfa else ""
    template = "<template xmlns='http://www.xfa.org/schema/xfa-template/3.0/'/>"
    shown, label = (
        f"BT /F 12 Tf {x} Td ({text}) Tj ET" for x, text in (("2 5", value), ("20 95", "Name:"))
    )
    objects = [
        f"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]{xfa}/DR<</Font<</F 5 0 R>>>>>>>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Resources<</Font<</F 5 0 R>>>>"
        "/Annots[4 0 R]/Contents 7 0 R>>",
        f"<</Type/Annot/Subtype/Widget/FT/Tx/T(name)/V({value})/Rect[100 90 280 110]"
        "/DA(/F 12 Tf)/P 3 0 R/AP<</N 6 0 R>>>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        "<</Type/XObject/Subtype/Form/BBox[0 0 180 20]/Resources<</Font<</F 5 0 R>>>>"
        f"/Length {len(shown)}>>stream\n{shown}\nendstream",
        f"<</Length {len(label)}>>stream\n{label}\nendstream",
        f"<</Length {len(template)}>>stream\n{template}\nendstream",
    ]
    out, table = "%PDF-1.7\n", "0000000000 65535 f \n"
    for i, body in enumerate(objects, start=1):
        table += f"{len(out):010d} 00000 n \n"
        out += f"{i} 0 obj{body}endobj\n"
    size = len(objects) + 1
    trailer = f"trailer<</Size {size}/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF\n"
    return f"{out}xref\n0 {size}\n{table}{trailer}".encode()
