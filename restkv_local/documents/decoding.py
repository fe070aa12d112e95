"""Turns bytes into characters, or into one line that says why not; nothing is guessed."""

from __future__ import annotations

import codecs
import re
from typing import Final

from restkv_local.errors import InputError

_BOMS: Final = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}

# Where web pages and XML declare what they are written in; browsers look as far.
_DECLARED: Final = re.compile(
    rb"""<(?:\?xml|meta)\b[^>]*?(?:encoding|charset)\s*=\s*["']?\s*([\w:.-]+)""", re.I
)
_DECLARED_WITHIN: Final = 1024

# Pages say the narrower name and hold what the wider one has; browsers read them so (WHATWG Encoding, 4.2).
_MEANT: Final = {
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
# Names of the web that Python does not know.
_LABELS: Final = {"x-sjis": "cp932", "windows-874": "cp874", "unicode": "utf-16"}
# Code pages of one byte leave some undefined: each becomes U+FFFD, for all to see.
_WITH_HOLES: Final = ("cp1252", "cp1254", "cp874")


def decode_text(data: bytes, name: str) -> str:
    """Decode UTF-8 text, with or without a byte order mark.

    Raises
    ------
    InputError
        The bytes are not UTF-8, or hold a zero byte; names the first offset.
    """
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            raise InputError(
                f"{name} is not UTF-8 text: byte 0x{bom[0]:02x} at offset 0, it looks like "
                f"{encoding}; convert it (iconv -f {encoding} -t UTF-8)"
            )
    # Zero bytes first: they are valid UTF-8, yet they say "binary" better than a later bad byte.
    zero = data.find(b"\0")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not 0 <= zero < error.start:
            raise InputError(
                f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset "
                f"{error.start}; convert it (iconv -f ISO-8859-1 -t UTF-8) or extract its text"
            ) from None
    if zero >= 0:
        raise InputError(
            f"{name} is binary: byte 0x00 at offset {zero}; give a text file, or extract its text"
        )
    return text.removeprefix("\ufeff")


def decode_markup(data: bytes, name: str) -> str:
    """Decode HTML or XML as its byte order mark or its own declaration says, else as UTF-8.

    Raises
    ------
    InputError
        The bytes are not what they are declared to be, or nothing is declared and they are not UTF-8.
    """
    encoding = _declared_encoding(data, name)
    # A declaration that could be read byte by byte is wrong about UTF-16; browsers take UTF-8 then.
    is_wide = encoding.startswith("utf-16") and b"\0" in data[:_DECLARED_WITHIN]
    if encoding == "utf-8" or (encoding.startswith("utf-16") and not is_wide):
        return decode_text(data, name)
    encoding = _MEANT.get(encoding, encoding)
    try:
        text = data.decode(encoding, "replace" if encoding in _WITH_HOLES else "strict")
    except (LookupError, ValueError) as error:  # not every codec makes text
        raise InputError(
            f"{name} is not {encoding} text, as it says it is: {' '.join(str(error).split())};"
            " convert it to UTF-8"
        ) from None
    return text.removeprefix("\ufeff").replace("\0", "")


def _declared_encoding(data: bytes, name: str) -> str:
    """Return Python's name of the encoding that a page declares, UTF-8 where it declares none."""
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    if data.startswith(tuple(_BOMS)):
        return "utf-16"
    match = _DECLARED.search(data[:_DECLARED_WITHIN])
    declared = match[1].decode("ascii") if match else "utf-8"
    try:
        return codecs.lookup(_LABELS.get(declared.lower(), declared)).name
    except LookupError:
        raise InputError(
            f"{name} says that it is written in {declared!r}, which is not known; convert it to UTF-8"
        ) from None
