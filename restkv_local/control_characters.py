"""Keeps text of documents, questions and models, and names of files, from commanding a terminal."""

from __future__ import annotations

import re
from pathlib import Path

# Everything below U+0020 but tab and newline, DEL, and the C1 range: a document can make a model
# repeat a terminal command, and a terminal would obey it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def strip_control(text: str) -> str:
    """Leave control characters out."""
    return _CONTROL.sub("", text)


def escape_control(json_text: str) -> str:
    """Write the control characters that JSON allows in strings as escapes, which mean the same."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", json_text)


def show_path(path: Path) -> str:
    """Path as one printable line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)
