"""Turn files and standard input into text, or into one line that says why not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from restkv_local.cli._console import fail_usage, print_note

from restkv_local.documents import parse_document, read_document
from restkv_local.documents.decoding import decode_text
from restkv_local.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from restkv_local.documents import Document

# A pipe that sends nothing looks like a program that hangs, so say what is being waited for.
SECONDS_BEFORE_NOTE = 3.0

STDIN_NAME: Final = "standard input"


def read_documents(paths: Sequence[str]) -> list[Document]:
    """Read every ``-f`` in the order given, standard input at most once; notes go to stderr.

    Raises
    ------
    InputError
        A file cannot be read as text, or holds none.
    """
    if list(paths).count("-") > 1:
        fail_usage("- was given twice; standard input can be read once")
    documents = []
    for path in paths:
        piped = path == "-"
        document = parse_document(read_stdin(), STDIN_NAME) if piped else read_document(path)
        for note in document.notes:
            print_note(f"note: {document.name}: {note}")
        documents.append(document)
    return documents


def read_piped() -> str:
    """Read a prompt from standard input, empty where there is none.

    Raises
    ------
    InputError
        It is not UTF-8 text.
    """
    return decode_text(read_stdin(), STDIN_NAME).strip("\n")


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
            raise InputError(f"{STDIN_NAME}: {error.strerror or error}") from None


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
