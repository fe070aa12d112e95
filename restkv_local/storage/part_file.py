"""A file that is written beside its final name, and takes it once it is whole: nobody ever sees a half."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

_SUFFIX: Final = ".restkv-part"
_STALE_SECONDS: Final = 24 * 3600


class PartFile:
    """A new file, which its maker ends with :meth:`keep` or :meth:`drop`, whatever happens in between.

    Parameters
    ----------
    path : Path
        The final name. Its folder is made if need be, and what killed runs left there is removed.

    Attributes
    ----------
    stream : binary file
        To be written to; only its owner may read the file.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=_SUFFIX, dir=path.parent)
        self._part = Path(name)
        self.stream: BinaryIO = os.fdopen(handle, "wb")

    def keep(self) -> None:
        """Give it the final name, instead of what had it.

        Raises
        ------
        OSError
            If it cannot be ended or renamed; what had the name is unchanged then.
        """
        self.stream.close()
        self._part.replace(self._path)

    def drop(self) -> None:
        """Leave nothing of it; what has the final name is unchanged."""
        with suppress(OSError):
            self.stream.close()
        with suppress(OSError):
            self._part.unlink()


def _remove_stale(folder: Path) -> None:
    """Remove what killed runs left; a living one's part is younger."""
    with suppress(OSError):
        for part in folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > _STALE_SECONDS:
                    part.unlink()
