"""Reads an EPUB: its chapters in the order of the spine, its headings as places."""

from __future__ import annotations

import posixpath
from typing import Final
from urllib.parse import unquote

from lxml import etree

from restkv_local.documents.archive import Archive
from restkv_local.documents.decoding import decode_markup
from restkv_local.documents.document import Mark
from restkv_local.documents.markup import parse_markup, write_markup
from restkv_local.documents.writer import TextWriter, clean, flatten, name_place
from restkv_local.documents.xml import local_name, parse_xml
from restkv_local.errors import InputError

_CONTAINER: Final = "META-INF/container.xml"
_ENCRYPTION: Final = "META-INF/encryption.xml"
# Anything else in a spine is a page, whatever it is called.
_NO_TEXT: Final = ("image/", "audio/", "video/", "font/")


def read_epub(data: bytes, name: str) -> tuple[str, tuple[Mark, ...], tuple[str, ...]]:
    """Return text, marks and notes of a book.

    Raises
    ------
    InputError
        If it is broken, protected, or larger than the limits of :class:`Archive`.
    """
    archive = Archive(data, name)
    package_path = _find_package(archive)
    package = parse_xml(archive.read(package_path), archive, package_path)
    folder = posixpath.dirname(package_path)
    items = {
        item.get("id"): (_resolve(folder, item.get("href")), item)
        for item in _find(package, "manifest", "item")
    }
    spine = [items.get(entry.get("idref")) for entry in _find(package, "spine", "itemref")]
    if not spine:
        raise archive.broken(f"{package_path} lists no chapters")
    titles = _read_titles(archive, package, items)
    locked = _list_encrypted(archive)
    writer = TextWriter()
    notes = []
    for number, entry in enumerate(spine, start=1):
        if entry is None or entry[0] not in archive.members:
            notes.append(f"part {number} of the book is missing in the file")
            continue
        path, item = entry
        if path in locked:
            raise InputError(
                f"{name} is protected (DRM): its text is encrypted; give a copy without"
            )
        if (item.get("media-type") or "").startswith(_NO_TEXT):
            notes.append(
                f"part {number} of the book, {flatten(clean(path))}, is a picture or sound and left out"
            )
            continue
        title = titles.get(path)
        writer.place(name_place("chapter", title) if title else f"part {number}")
        page_name = f"{name}: {flatten(clean(path))}"
        root = parse_markup(decode_markup(archive.read(path), page_name), page_name, is_xml=True)
        if root is not None:
            # The menu of a book is its table of contents: said again by the headings.
            write_markup(root, writer, "chapter")
    return *writer.finish(), tuple(notes)


def _find_package(archive: Archive) -> str:
    """Return the path of the file that lists what the book consists of."""
    container = parse_xml(archive.read(_CONTAINER), archive, _CONTAINER)
    for rootfile in _find(container, "rootfiles", "rootfile"):
        if path := rootfile.get("full-path"):
            return path
    raise archive.broken(f"{_CONTAINER} names no book")


def _find(root: etree._Element, parent: str, child: str) -> list[etree._Element]:
    """Return the children of a kind under each parent of a kind, whatever their namespaces."""
    return [
        element
        for holder in root.iterdescendants()
        if local_name(holder) == parent
        for element in holder
        if local_name(element) == child
    ]


def _resolve(folder: str, href: str | None) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote((href or "").partition("#")[0])))


def _read_titles(
    archive: Archive,
    package: etree._Element,
    items: dict[str | None, tuple[str, etree._Element]],
) -> dict[str, str]:
    """Return the title of each file that the table of contents names, the first one that it has.

    EPUB 3 has a page with links, EPUB 2 an NCX file. A book can be read without either.
    """
    toc_ids = [
        spine.get("toc") for spine in package.iterdescendants() if local_name(spine) == "spine"
    ]
    paths = [
        path for path, item in items.values() if "nav" in (item.get("properties") or "").split()
    ]
    paths += [items[toc][0] for toc in toc_ids if toc in items]
    titles: dict[str, str] = {}
    for path in paths:
        if path not in archive.members:
            continue
        name = f"{archive.name}: {flatten(clean(path))}"
        root = parse_markup(decode_markup(archive.read(path), name), name, is_xml=True)
        folder = posixpath.dirname(path)
        label = ""
        for element in () if root is None else root.iterdescendants():
            match local_name(element):
                case "a" if element.get("href"):
                    title = flatten("".join(map(str, element.itertext())))
                    titles.setdefault(_resolve(folder, element.get("href")), title)
                case "text":
                    label = flatten(element.text or "")
                case "content" if label:
                    titles.setdefault(_resolve(folder, element.get("src")), label)
    return titles


def _list_encrypted(archive: Archive) -> set[str]:
    """Return the members that cannot be read without a key; fonts often are, and do no harm."""
    if _ENCRYPTION not in archive.members:
        return set()
    root = parse_xml(archive.read(_ENCRYPTION), archive, _ENCRYPTION)
    return {
        _resolve("", element.get("URI"))
        for element in root.iterdescendants()
        if local_name(element) == "CipherReference"
    }
