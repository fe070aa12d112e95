"""One writer at a time, where a file is looked at first and then replaced."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from restkv_local.control_characters import show_path
from restkv_local.errors import SessionFileError

_WAIT_SECONDS: Final = 60


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep this user's other processes from writing a file until the block ends.

    The lock lies in the folder for temporary files: nothing is left beside the file.

    Raises
    ------
    SessionFileError
        If another process goes on writing it for a minute, or there is nowhere to note that this one does.
    """
    folder = tempfile.gettempdir()
    try:
        # A link is the file it names, and one user's lock is not another's to open.
        place = f"{getattr(os, 'getuid', int)()}\0{os.path.realpath(path)}"
        name = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:32]
        lock = FileLock(Path(folder) / f"restkv-local-{name}.lock")
        lock.acquire(timeout=_WAIT_SECONDS)
    except Timeout as error:
        raise SessionFileError(
            f"{show_path(path)} is being written by another process, for {_WAIT_SECONDS} s already: "
            "end that one, or save under another name"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: no system holds a file of that name
        reason = getattr(error, "strerror", None) or error
        raise SessionFileError(
            f"cannot write {show_path(path)}: {reason} (its lock lies in {folder})"
        ) from error
    try:
        yield
    finally:
        lock.release()
