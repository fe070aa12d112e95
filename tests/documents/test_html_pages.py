"""HTML: the words that a person sees, in their order, and nothing else."""

import re

import pytest
from document_files import HTML, assert_places, refusal
from hypothesis import example, given, settings
from hypothesis import strategies as st

from restkv_local.documents import parse_document


def text_of(body, name="a.html"):
    return parse_document(body.encode(), name).text


def test_a_page_is_read_down_its_blocks():
    document = parse_document(HTML.encode(), "a.html")
    assert document.text == (
        "Written in May.\n\nMethods\n\nWe counted boats.\n\n- red\n- blue\n\nResults\n\n"
        "boat | count\nred | 12"
    )
    assert document.notes == ("menus (nav) are left out",)
    places = [document.locate(document.text.index(word)) for word in ("May", "blue", "12")]
    assert places == ["the beginning", 'section "Methods"', 'section "Results"']


def test_paragraphs_count_where_there_are_no_headings():
    document = parse_document(b"<p>one</p><p>two</p><ul><li>a</li><li>b</li></ul>", "a.html")
    assert document.locate(document.text.index("two")) == "paragraph 2"
    assert document.locate(0, len(document.text)) == "paragraphs 1-3"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("a<br>b  c\n d", "a\nb c d"),
        ("<p>a<b>b</b> c", "ab c"),
        ("<div>a<div>b</div>c</div>", "a\n\nb\n\nc"),
        ("x<!-- no -->y<?php no ?>z", "xyz"),
        ("<p>a<script>no</script>b<style>no</style>", "ab"),
        ("a<template>no</template><svg><text>no</text></svg> b", "a b"),
        ("a<p hidden>no</p><p style='display : none'>no</p>b", "a\n\nb"),
        ("<nav>no</nav>a<div role=navigation>no</div>b", "a\n\nb"),
        ("<a href='http://x.y'>words</a>", "words"),
        ("<pre>\n  a\n\n    b &lt;\n</pre>c", "  a\n\n    b <\n\nc"),
        ("<pre><div>a</div><div>b</div></pre>", "a\nb"),
        ("<ol start=3><li>a<li>b<ul><li>c</ul><li>d</ol>", "3. a\n4. b\n  - c\n5. d"),
        ("<ol type=i><li>a<li value=4>b</ol>", "i. a\niv. b"),
        ("<ol type=A start=27><li>a</ol>", "27. a"),
        ("<ul><li><p>a</p><p>b</p></ul>c", "- a\n\n  b\n\nc"),
        ("<li>alone", "- alone"),
        ("<table><tr><td>a<p>b</p><td><td>c<br>d</table>", "a b |  | c d"),
        ("<table><tr><td><table><tr><td>a<td>b</table><td>c</table>", "a | b\n\nc"),
        ("<table><tr><td>1<td><pre>x\n y</pre></table>", "1\n\nx\n y"),
        ("<table>stray<tr><td>a</tr></table>", "stray\n\na"),
        ("10<sup>6</sup>, 1<sup>st</sup>", "10^6, 1st"),
        ("word<sup><a href=#n>1</a></sup>, word<a href=#n><sup>2</sup></a>", "word[1], word[2]"),
        (
            "word<a href=#n>3</a>, see <a href=#n>4</a>, <sup>[<a>5</a>]</sup>",
            "word[3], see 4, [5]",
        ),
        ("<img src=x alt='a  cat'><img alt=''>", "[image: a cat]"),
        ("<q>a</q>", '"a"'),
        ("a&nbsp;b&shy;c&#8203;d", "a bcd"),
        ("<h1>A<br>B <a href=#a>¶</a></h1>c", "A B\n\nc"),
        ("<h2>a<p>b</h2>", "a\n\nb"),
        ("</p>a</div><b>b", "ab"),
        ("plain", "plain"),
    ],
)
def test_elements_become_text(body, text):
    assert text_of(f"<html><body>{body}") == text


def test_a_heading_is_named_without_what_surrounds_it():
    long = "word " * 40
    page = f"<h1>§Usage</h1>a<h2>§ 5 Liability</h2>b<h3>In C#</h3>c<h4>{long}</h4>d<h5> </h5>e"
    labels = [mark.label for mark in parse_document(page.encode(), "a.html").marks]
    assert labels[:3] == ['section "Usage"', 'section "§ 5 Liability"', 'section "In C#"']
    assert labels[3].endswith('…"')
    assert len(labels) == 4
    assert len(labels[3]) < 100


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('<meta charset="iso-8859-1">caf\xe9 \x93q\x94'.encode("latin-1"), "café “q”"),
        (
            '<meta http-equiv=x content="text/html; charset=shift_jis">日本'.encode("shift_jis"),
            "日本",
        ),
        ('<?xml version="1.0" encoding="utf-16"?><p>é</p>'.encode("utf-16"), "é"),
        ('<meta charset="utf-16"><p>é</p>'.encode(), "é"),
        ("<p>é</p>".encode("utf-8-sig"), "é"),
        ('<meta charset="iso-8859-1"><p>é</p>'.encode("utf-8-sig"), "é"),
        ('<?xml version="1.0" encoding="cp1251"?><p>é</p>'.encode("utf-8-sig"), "é"),
    ],
)
def test_a_page_is_decoded_as_it_declares(data, text):
    assert parse_document(data, "a.html").text == text


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"<p>caf\xe9</p>", "0xe9 at offset 6"),
        (b'<meta charset="utf-8"><p>\xff</p>', "0xff"),
        (b'<meta charset="klingon"><p>a</p>', "'klingon'"),
        (b'<meta charset="rot13"><p>a</p>', "not a text encoding"),
        (b'<meta charset="zlib"><p>a</p>', "not a text encoding"),
        (b'<meta charset="euc-jp"><p>\xff\xff</p>', "not euc_jp"),
        (b"<div>" * 3000 + b"deep", "cannot be read whole: Excessive depth"),
    ],
)
def test_a_page_that_cannot_be_read_whole_is_refused(data, part):
    assert part in refusal(data, "a.html")


def test_pages_as_deep_as_real_ones_are_read_whole():
    """With its own limit of 256 the parser dropped the rest of the page without a word."""
    assert text_of("<div>" * 1500 + "deep" + "</div>" * 1500 + "<p>after") == "deep\n\nafter"


def test_entities_of_a_page_are_not_expanded():
    laughs = '<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    page = f'<?xml version="1.0"?><!DOCTYPE html [{laughs}]><html><p>x &i; y &eacute; z</p></html>'
    text = text_of(page)
    assert len(text) < 1000
    assert text.endswith("y é z")
    secret = '<?xml version="1.0"?><!DOCTYPE html [<!ENTITY f SYSTEM "file:///etc/hostname">]>'
    assert text_of(f"{secret}<html><p>a &f; b</p></html>").endswith("a &f; b")


def test_an_unclosed_tag_in_xhtml_swallows_nothing():
    assert text_of('<?xml version="1.0"?><html><head><title/><script src="x"/></head>a') == "a"
    good = '<?xml version="1.0"?><html><head><title/><script src="x"/></head><body>a</body></html>'
    assert text_of(good) == "a"


TAGS = ["p", "div", "b", "a", "span", "h1", "h3", "ul", "ol", "li", "table", "tr", "td", "th"]
TAGS += ["pre", "sup", "q", "section", "blockquote", "dl", "dt", "caption", "nav", "script", "br"]
NODES = st.recursive(
    st.just(None),
    lambda inner: st.tuples(st.sampled_from(TAGS), st.lists(inner, max_size=5)),
    max_leaves=40,
)


@settings(max_examples=300, deadline=5000)
@given(st.lists(NODES, min_size=1, max_size=6))
@example([("table", [("td", [None]), ("tr", [])])])
def test_no_seen_word_is_lost_moved_or_doubled(nodes):
    """Held against a plain walk over the tree that the parser made of the page."""
    from lxml import etree

    n_words = 0

    def write(node):
        nonlocal n_words
        if node is None:
            n_words += 1
            return f" word{n_words} "
        tag, children = node
        return f"<{tag}>{''.join(map(write, children))}</{tag}>"

    page = "<html><body>start " + "".join(map(write, nodes)) + " end"
    tree = etree.fromstring(page, etree.HTMLParser())

    def walk(element):
        if element.tag not in ("nav", "script"):
            yield element.text or ""
            for child in element:
                yield from walk(child)
                yield child.tail or ""

    seen = re.findall(r"word\d+|start|end", " ".join(walk(tree)))
    document = parse_document(page.encode(), "a.html")
    assert re.findall(r"word\d+|start|end", document.text) == seen
    assert_places(document)


@pytest.mark.parametrize("inner", ["form", "span", "div"])
def test_a_row_within_a_cell_loses_nothing(inner):
    page = f"<table><tr><td>one<{inner}><tr><td>two</{inner}></td></tr></table><p>three"
    assert re.findall(r"one|two|three", text_of(page)) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("gb2312", "gb18030", "朱镕基"),
        ("shift_jis", "cp932", "①髙"),
        ("x-sjis", "cp932", "日本"),
        ("euc-kr", "cp949", "똠"),
        ("iso-8859-9", "cp1254", "“ş”"),
        ("windows-874", "cp874", "ไทย"),
    ],
)
def test_a_page_holds_what_browsers_read_under_its_label(label, codec, text):
    data = f'<meta charset="{label}"><p>'.encode() + text.encode(codec)
    assert parse_document(data, "a.html").text == text
