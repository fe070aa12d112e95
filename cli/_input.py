"""Turn files and standard input into text, or into one line that says why not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from restkv_local.cli._console import fail_usage, print_note

from restkv_local.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A pipe that sends nothing looks like a program that hangs, so say what is being waited for.
SECONDS_BEFORE_NOTE = 3.0

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


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


def read_document(path: str) -> str:
    """Read a text file, ``-`` for standard input.

    Raises
    ------
    InputError
        It is missing, a directory, unreadable, empty, or not UTF-8 text.
    """
    if path == "-":
        data, name = read_stdin(), "standard input"
    else:
        file = Path(path).expanduser()
        name = str(file)
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            raise InputError(f"{name}: no such file") from None
        except IsADirectoryError:
            raise InputError(f"{name} is a directory; give one -f per file in it") from None
        except OSError as error:
            raise InputError(f"{name}: {error.strerror or error}") from None
    text = decode_text(data, name)
    if not text.strip():
        raise InputError(f"{name} is empty; give a file with text in it")
    return text


def read_documents(paths: Sequence[str]) -> list[str]:
    """Read every ``-f``, in the order given; standard input at most once."""
    if list(paths).count("-") > 1:
        fail_usage("-f - was given twice; standard input can be read once")
    return [read_document(path) for path in paths]


def stdin_is_terminal() -> bool:
    """Tell whether a person may be typing; a closed standard input is not a terminal."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def read_stdin() -> bytes:
    """Read standard input to its end; a closed one is empty."""
    if sys.stdin is None or sys.stdin.closed:
        return b""
    with _note_when_slow():
        try:
            return sys.stdin.buffer.read()
        except OSError as error:
            raise InputError(f"standard input: {error.strerror or error}") from None


@contextmanager
def _note_when_slow() -> Iterator[None]:
    timer = threading.Timer(
        SECONDS_BEFORE_NOTE,
        print_note,
        ["reading standard input to its end; give < /dev/null if there is nothing to read"],
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
