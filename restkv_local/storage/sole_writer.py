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
from platformdirs import user_cache_path

from restkv_local.control_characters import show_path
from restkv_local.errors import SessionFileError

_WAIT_SECONDS: Final = 60


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep this user's other processes from writing a file until the block ends.

    The lock lies in the user's cache folder, in that for temporary files where nothing can be written there: nothing
    is left beside the file.

    Raises
    ------
    SessionFileError
        If another process goes on writing it for a minute, or there is nowhere to note that this one does.
    """
    try:
        # A link is the file it names, and one user's lock is not another's to open.
        place = f"{getattr(os, 'getuid', int)()}\0{os.path.realpath(path)}"
        name = hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()[:32]
        lock = _acquire(f"restkv-local-{name}.lock")
    except Timeout as error:
        raise SessionFileError(
            f"{show_path(path)} is being written by another process, for {_WAIT_SECONDS} s already: "
            "end that one, or save under another name"
        ) from error
    except (OSError, NotImplementedError, ValueError) as error:
        # ValueError: no system holds a file of that name
        reason = getattr(error, "strerror", None) or error
        raise SessionFileError(
            f"cannot write {show_path(path)}: there is nowhere to lock it ({reason})"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(name: str) -> FileLock:
    # Not the temporary folder first: programs are given temporary folders of their own.
    try:
        return _acquire_in(user_cache_path("restkv-local") / "locks", name)
    except Timeout:
        raise
    except (OSError, NotImplementedError):
        # No right to write there, or a file system without locks.
        return _acquire_in(Path(tempfile.gettempdir()), name)


def _acquire_in(folder: Path, name: str) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    lock.acquire(timeout=_WAIT_SECONDS)
    return lock
