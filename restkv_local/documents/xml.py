"""Parses XML so that nothing is loaded and no entity expands, and looks names up without namespaces."""

from __future__ import annotations

from lxml import etree

from restkv_local.documents.archive import Archive


def parse_xml(data: bytes, archive: Archive, member: str) -> etree._Element:
    """Return the root of one member of an archive.

    Raises
    ------
    InputError
        If it is not well-formed.
    """
    parser = etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise archive.broken(f"{member}: {error}") from None


def local_name(element: etree._Element) -> str:
    """Return an element's name without its namespace."""
    return str(element.tag).rpartition("}")[2]


def child_of(element: etree._Element | None, tag: str) -> etree._Element | None:
    """Return the first child of a name, None where there is none."""
    if element is None:
        return None
    return next((child for child in element if local_name(child) == tag), None)


def value_of(element: etree._Element | None, key: str = "val") -> str:
    """Return an attribute by its name without a namespace, empty where there is none."""
    if element is None:
        return ""
    return next(
        (str(value) for name, value in element.items() if str(name).rpartition("}")[2] == key), ""
    )


def int_of(text: str, default: int) -> int:
    """Return a short decimal number, the default for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else default
