"""DOCX: everything that a person sees in Word, with the numbers that Word shows."""

import docx
import pytest
from document_files import W, add_part, add_xml, make_docx, make_zip, patch_docx, refusal, save_docx

from restkv_local.documents import parse_document


def read(body="", **kwargs):
    """Read a document of raw WordprocessingML."""
    return parse_document(build(body, **kwargs), "a.docx")


def build(body, numbering=None):
    document = docx.Document()
    add_xml(document, body)
    data = save_docx(document)
    return data if numbering is None else patch_docx(data, {"word/numbering.xml": numbering})


def p(text, properties=""):
    return f"<w:p><w:pPr>{properties}</w:pPr>{r(text)}</w:p>"


def r(text, properties=""):
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{text}</w:t></w:r>'


def item(text, level=0, list_id=1):
    return p(text, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{list_id}"/></w:numPr>')


def numbering(*levels, nums='<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'):
    """Levels are (format, text); they number from 1."""
    body = "".join(
        f'<w:lvl w:ilvl="{i}"><w:start w:val="1"/><w:numFmt w:val="{kind}"/><w:lvlText w:val="{text}"/></w:lvl>'
        for i, (kind, text) in enumerate(levels)
    )
    return f'<w:numbering {W}><w:abstractNum w:abstractNumId="0">{body}</w:abstractNum>{nums}</w:numbering>'


LEGAL = numbering(("decimal", "%1."), ("decimal", "%1.%2"), ("lowerLetter", "(%3)"))


def test_a_report_is_read_in_its_order():
    document = parse_document(make_docx(), "a.docx")
    assert document.text == (
        "Written in May.\n\nMethods\n\nWe counted boats.\n\n- red\n- blue\n1. first\n2. second\n\n"
        "Results\n\nboat | count\nred | 12\n\nThey were many."
    )
    places = [document.locate(document.text.index(word)) for word in ("May", "blue", "12")]
    assert places == ["the beginning", 'section "Methods"', 'section "Results"']
    assert document.notes == ()


def test_paragraphs_count_where_there_are_no_headings():
    document = read(p("one") + p("") + p("two"))
    assert document.locate(document.text.index("two")) == "paragraph 2"


def test_items_carry_the_numbers_that_word_shows():
    body = (
        item("Parties")
        + item("Buyer", 1)
        + item("of age", 2)
        + item("solvent", 2)
        + p("between")
        + item("Seller", 1)
        + item("of age", 2)
        + item("Price")
        + item("Sum", 1)
    )
    assert read(body, numbering=LEGAL).text == (
        "1. Parties\n  1.1 Buyer\n    (a) of age\n    (b) solvent\n\nbetween\n\n  1.2 Seller\n"
        "    (a) of age\n2. Price\n  2.1 Sum"
    )


def test_numbered_headings_are_named_with_their_number():
    style = '<w:pStyle w:val="Heading1"/><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr>'
    document = read(p("Scope", style) + p("Term", style), numbering=LEGAL)
    assert [mark.label for mark in document.marks] == ['section "1. Scope"', 'section "2. Term"']


def test_a_second_list_of_the_same_scheme_begins_where_it_says():
    nums = (
        '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="0"/>'
        '<w:lvlOverride w:ilvl="0"><w:startOverride w:val="5"/></w:lvlOverride></w:num>'
    )
    body = item("a") + item("b") + item("c", list_id=2) + item("d", list_id=2)
    text = read(body, numbering=numbering(("upperRoman", "%1)"), nums=nums)).text
    assert text == "I) a\nII) b\nV) c\nVI) d"


def test_an_empty_item_has_a_number_too():
    assert read(item("a") + item("") + item("b"), numbering=LEGAL).text == "1. a\n3. b"


def test_items_without_a_known_number_are_bullets_and_zero_is_no_list():
    body = item("a", list_id=77) + item("b", list_id=0) + item("c", level=5)
    assert read(body, numbering=LEGAL).text == "- a\n\nb\n\n          - c"


@pytest.mark.parametrize(
    ("inline", "text"),
    [
        (r("a") + "<w:ins>" + r("b") + "</w:ins>", "ab"),
        (r("a") + "<w:del><w:r><w:delText>no</w:delText></w:r></w:del>", "a"),
        ('<w:hyperlink w:anchor="x">' + r("link") + "</w:hyperlink>", "link"),
        ("<w:sdt><w:sdtPr/><w:sdtContent>" + r("field") + "</w:sdtContent></w:sdt>", "field"),
        ('<w:fldSimple w:instr="PAGE">' + r("7") + "</w:fldSimple>", "7"),
        ("<w:r><w:instrText>PAGE</w:instrText></w:r>" + r("7"), "7"),
        ("<w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>", "a\tb\nc"),
        ("<w:r><w:t>co</w:t><w:noBreakHyphen/><w:t>op</w:t><w:softHyphen/></w:r>", "co-op"),
        (r("10") + r("6", '<w:vertAlign w:val="superscript"/>'), "10^6"),
        (r("1") + r("st", '<w:vertAlign w:val="superscript"/>'), "1st"),
        (
            "<m:oMath><m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup>"
            "</m:sSup><m:f><m:num><m:r><m:t>a</m:t></m:r></m:num><m:den><m:r><m:t>b</m:t></m:r></m:den>"
            "</m:f></m:oMath>",
            "x^2(a)/(b)",
        ),
        ('<w:r><w:drawing><wp:inline><wp:docPr id="1" name="n" descr="A cat"/></wp:inline></w:drawing></w:r>',
         "[image: A cat]"),
        ('<w:r><w:sym w:font="Wingdings" w:char="F0FC"/></w:r>' + r(" done"), "\ufffd done"),
    ],
)  # fmt: skip
def test_parts_of_a_paragraph_become_text(inline, text):
    assert read(f"<w:p>{inline}</w:p>").text == text


def test_blocks_inside_controls_and_insertions_are_read():
    body = f"<w:sdt><w:sdtContent>{p('a')}<w:ins>{p('b')}</w:ins></w:sdtContent></w:sdt>{p('c')}"
    assert read(body).text == "a\n\nb\n\nc"


def test_text_boxes_follow_their_paragraph_once():
    box = f"<w:txbxContent>{p('in the box')}</w:txbxContent>"
    body = (
        f'<w:p xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">{r("before")}<w:r>'
        f'<mc:AlternateContent><mc:Choice Requires="wps"><w:drawing>{box}</w:drawing></mc:Choice>'
        f"<mc:Fallback><w:pict>{box}</w:pict></mc:Fallback></mc:AlternateContent></w:r></w:p>{p('after')}"
    )
    assert read(body).text == "before\n\nin the box\n\nafter"


def row(*cells):
    return "<w:tr>" + "".join(f"<w:tc>{cell}</w:tc>" for cell in cells) + "</w:tr>"


def test_tables_are_rows_and_boxes_around_text_are_not():
    table = row(p("a") + p("b"), p(""), p("c")) + row(p("d"), p("e"), p("f"))
    deleted = "<w:tr><w:trPr><w:del/></w:trPr><w:tc>" + p("no") + "</w:tc></w:tr>"
    assert read(f"<w:tbl>{table}{deleted}</w:tbl>").text == "a b |  | c\nd | e | f"
    assert read(f"<w:tbl>{row(p('a') + p('b'))}</w:tbl>").text == "a\n\nb"
    inner = f"<w:tbl>{row(p('x'), p('y'))}</w:tbl>"
    assert read(f"<w:tbl>{row(inner + p('z'), p('side'))}</w:tbl>").text == "x | y\n\nz\n\nside"


def test_notes_follow_the_paragraph_that_cites_them():
    def note(note_id, text, kind=""):
        return f'<w:footnote w:id="{note_id}" {kind}>{p(text)}</w:footnote>'

    notes = note(0, "line", 'w:type="separator"') + note(5, "Telescope.") + note(2, "Twice.")
    cite = '<w:r><w:footnoteReference w:id="{}"/></w:r>'.format
    body = f"<w:p>{r('boats')}{cite(5)}{r(' and ships')}{cite(2)}{cite(99)}</w:p>{p('end')}"
    data = add_part(build(body), "footnotes", f"<w:footnotes {W}>{notes}</w:footnotes>")
    text = parse_document(data, "a.docx").text
    assert text == "boats[1] and ships[2]\n\n[1] Telescope.\n\n[2] Twice.\n\nend"


def test_what_is_left_out_is_said():
    document = docx.Document()
    document.add_paragraph("body")
    document.sections[0].header.paragraphs[0].text = "Confidential"
    assert parse_document(save_docx(document), "a.docx").notes == ("page headers are left out",)
    comments = f"<w:comments {W}><w:comment>{p('why?')}</w:comment></w:comments>"
    data = add_part(add_part(build(p("body")), "comments", comments), "chart", "<c/>")
    assert parse_document(data, "a.docx").notes == ("comments are left out", "charts are left out")


def test_strict_files_and_other_names_of_the_main_part_are_read():
    def strict(xml):
        return xml.replace(
            b"http://schemas.openxmlformats.org/wordprocessingml/2006/main",
            b"http://purl.oclc.org/ooxml/wordprocessingml/main",
        )

    def rename(xml):
        return xml.replace(b"word/document.xml", b"word/document2.xml")

    plain = parse_document(make_docx(), "a.docx").text
    parts = dict.fromkeys(("word/document.xml", "word/styles.xml", "word/numbering.xml"), strict)
    assert parse_document(patch_docx(make_docx(), parts), "a.docx").text == plain
    body = b""

    def keep(xml):
        nonlocal body
        body = xml

    data = patch_docx(make_docx(), {"_rels/.rels": rename, "word/document.xml": keep})
    data = patch_docx(data, {"word/document2.xml": body})
    assert "We counted boats." in parse_document(data, "a.docx").text


def test_styles_that_inherit_from_themselves_end():
    loop = (
        f'<w:styles {W}><w:style w:styleId="A"><w:basedOn w:val="B"/></w:style>'
        '<w:style w:styleId="B"><w:basedOn w:val="A"/></w:style></w:styles>'
    )
    data = patch_docx(build(p("text", '<w:pStyle w:val="A"/>')), {"word/styles.xml": loop})
    assert parse_document(data, "a.docx").text == "text"


@pytest.mark.parametrize("value", ["-1", "x", "", "99999999999999999999", "٣"])
def test_odd_numbers_in_a_file_do_no_harm(value):
    properties = f'<w:outlineLvl w:val="{value}"/><w:numPr><w:ilvl w:val="{value}"/><w:numId w:val="1"/></w:numPr>'
    assert "text" in read(p("text", properties), numbering=LEGAL).text


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"word/document.xml": None}, "word/document.xml is missing"),
        ({"word/document.xml": "<w:document"}, "word/document.xml: "),
        ({"word/styles.xml": "no xml"}, "word/styles.xml: "),
        ({"_rels/.rels": ""}, "_rels/.rels: "),
        ({"word/document.xml": "<a>" * 300 + "</a>" * 300}, "Excessive depth"),
    ],
)
def test_a_broken_part_is_named(changes, part):
    assert part in refusal(patch_docx(make_docx(), changes), "a.docx")


def test_a_part_that_is_broken_but_not_read_does_no_harm():
    data = patch_docx(make_docx(), {"docProps/app.xml": "no xml", "word/media/x.png": "no picture"})
    assert "We counted boats." in parse_document(data, "a.docx").text


def test_a_bomb_is_refused_before_it_fills_the_memory():
    bomb = make_zip({"word/document.xml": b"<a>" + b" " * (129 * 2**20) + b"</a>"})
    assert len(bomb) < 2**20
    assert "expands beyond 128 MiB" in refusal(bomb, "a.docx")


CITE = '<w:r><w:footnoteReference w:id="{}"/></w:r>'.format


def with_notes(body, *notes):
    """A document with footnotes 1, 2, ... of raw blocks."""
    parts = (f'<w:footnote w:id="{i}">{note}</w:footnote>' for i, note in enumerate(notes, start=1))
    part = f"<w:footnotes {W}>{''.join(parts)}</w:footnotes>"
    return parse_document(add_part(build(body), "footnotes", part), "a.docx").text


def test_notes_that_cite_each_other_are_written_once():
    body = f"<w:p>{r('boats')}{CITE(1)}</w:p>"
    notes = (f"<w:p>{r('see')}{CITE(2)}</w:p>", f"<w:p>{r('or')}{CITE(1)}{CITE(2)}</w:p>")
    assert with_notes(body, *notes) == "boats[1]\n\n[1] see[2]\n\n[2] or[1][2]"


def test_cells_of_a_table_in_a_note_stay_apart():
    cells = "".join(f"<w:tc>{p(text)}</w:tc>" for text in ("12", "34"))
    body = f"<w:p>{r('boats')}{CITE(1)}</w:p>"
    note = f"{p('counted')}<w:tbl><w:tr>{cells}</w:tr></w:tbl>{p('twice')}"
    assert with_notes(body, note) == "boats[1]\n\n[1] counted 12 | 34 twice"


def test_a_list_is_no_deeper_than_word_has_levels():
    document = read(item("deep", level=999999999), numbering=LEGAL)
    assert len(document.text) < 100
    assert document.text.endswith("deep")
