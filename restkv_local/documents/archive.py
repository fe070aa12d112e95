"""Reads members of a zip file, with limits that a bomb runs into."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from typing import Final

from restkv_local.documents.writer import clean, flatten
from restkv_local.errors import InputError

# Expanded, of one member and of all that are read. A thousand pages take about 10 MiB of XML; as
# a tree 128 MiB take up to 4 GiB of memory.
MEMBER_MAX: Final = 128 * 2**20
TOTAL_MAX: Final = 1024 * 2**20

_CHUNK: Final = 2**20
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression method that Python does not know
    OSError,
    ValueError,
)


class Archive:
    """A zip file in memory.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        What errors call it.

    Raises
    ------
    InputError
        If it is broken.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self._n_read = 0
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _BROKEN as error:
            raise self.broken(str(error)) from None
        self.members = frozenset(self._zip.namelist())

    def broken(self, why: str) -> InputError:
        """Return the error for a file that does not hold what it should."""
        return InputError(
            f"{self.name} is broken: {flatten(clean(why)) or 'it ends too early'}; get it or save it again"
        )

    def read(self, member: str) -> bytes:
        """Return one member, expanded and checked.

        Raises
        ------
        InputError
            If it is missing, broken, encrypted, or larger than the limits.
        """
        if member not in self.members:
            raise self.broken(f"{member} is missing")
        parts = []
        n_member = 0
        try:
            # Piece by piece: the size that a header states is no limit to what comes out.
            with self._zip.open(member) as stream:
                while part := stream.read(_CHUNK):
                    parts.append(part)
                    n_member += len(part)
                    self._n_read += len(part)
                    if n_member > MEMBER_MAX or self._n_read > TOTAL_MAX:
                        raise self._too_large(member)
        except _BROKEN as error:
            raise self.broken(f"{member}: {error}") from None
        except RuntimeError:  # what is left has no class of its own: encryption
            raise InputError(f"{self.name} is encrypted; save it without a password") from None
        return b"".join(parts)

    def _too_large(self, member: str) -> InputError:
        return InputError(
            f"{self.name} is refused: {flatten(clean(member))} expands beyond {MEMBER_MAX // 2**20} MiB,"
            f" or all parts beyond {TOTAL_MAX // 2**20} MiB; split it, or save it as plain text"
        )
