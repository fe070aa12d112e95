"""The format of sessions and readings: a zip of ``meta.json`` and ``.npy`` arrays, whole or absent.

Any zip program and ``numpy.load`` open it. Nothing is compressed: rows of a cache are noise to a compressor.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from restkv_local.control_characters import show_path
from restkv_local.errors import SessionFileError, UnreadableFileError
from restkv_local.storage.part_file import PartFile

Arrays = Mapping[str, npt.NDArray[Any]]

FORMAT: Final = "restkv-local"
VERSION: Final = 2  # raise it with any change that an older reader would misunderstand

_META, _DIGEST = "meta.json", "digest"
_TYPES: Final = ("uint8", "int32", "float32", "float64")


def write_container(path: Path, kind: str, meta: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a file so that it is the old one or the new one at any moment, never a half.

    Parameters
    ----------
    path : Path
        The file; its folder is made if need be. A link is followed.
    kind : str
        What it holds: a reader asks for the same word.
    meta : mapping
        JSON values.
    arrays : mapping of str to ndarray
        uint8, int32, float32 or float64.

    Raises
    ------
    SessionFileError
        If it cannot be written; what was there is unchanged.
    """
    shapes = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in arrays.items()
    }
    head = {"format": FORMAT, "version": VERSION, "kind": kind, "arrays": shapes, **meta}
    # ASCII: whatever characters a text holds, the file's bytes are plain.
    text = json.dumps(head, ensure_ascii=True, indent=1).encode()
    try:
        path = Path(os.path.realpath(path))
        part = PartFile(path)
        try:
            _write_zip(part.stream, text, arrays)
            part.stream.flush()
            os.fsync(part.stream.fileno())
            part.keep()
        except BaseException:  # Ctrl-C too leaves nothing behind
            part.drop()
            raise
        _sync_folder(path.parent)
    except (OSError, ValueError) as error:  # ValueError: no system holds a file of that name
        reason = getattr(error, "strerror", None) or error
        raise SessionFileError(
            f"cannot write {show_path(path)}: {reason}; what was there is unchanged"
        ) from error


def read_container(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read a file that :func:`write_container` wrote, every byte of its content checked.

    Returns
    -------
    meta : dict
        As it was written, with ``format``, ``version``, ``kind`` and ``arrays`` besides.
    arrays : dict of str to ndarray
        Read-only.

    Raises
    ------
    UnreadableFileError
        If it may be whole, but not be read now.
    SessionFileError
        If it is missing, damaged, of another kind, or newer than this reader.
    """
    meta, arrays = _read(path, kind, with_arrays=True)
    return meta, arrays


def read_meta(path: Path, kind: str) -> dict[str, Any]:
    """Read the JSON part alone: quick, for lists; the arrays are not looked at."""
    return _read(path, kind, with_arrays=False)[0]


def _read(
    path: Path, kind: str, *, with_arrays: bool
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    shown = show_path(path)
    try:
        # Before the zip reader looks: it would seek about in a device or a pipe.
        is_file = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero character
        raise _not_there(shown, "does not exist") from None
    except OSError as error:
        raise unreadable(path, error) from error
    if not is_file:
        raise _not_there(shown, "is no file")
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            _check_sizes(stream, archive)
            text = archive.read(_META)
            meta = _check_head(shown, json.loads(text), kind)
            arrays = _read_arrays(archive, text, meta) if with_arrays else {}
    except SessionFileError:
        raise
    except MemoryError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a damaged zip makes its reader raise whatever it likes
        # EINVAL: a seek to before the start, which only a damaged zip asks for.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise unreadable(path, error) from error
        raise SessionFileError(
            f"{shown} is damaged, cut short or no file of ours ({str(error) or type(error).__name__}): "
            "restore a copy of it or remove it"
        ) from error
    return meta, arrays


def unreadable(path: Path, error: OSError | MemoryError) -> UnreadableFileError:
    """Return what is said of a file that may be whole and cannot be read now."""
    why = (
        "there is not enough memory" if isinstance(error, MemoryError) else error.strerror or error
    )
    return UnreadableFileError(f"cannot read {show_path(path)}: {why}")


def _not_there(shown: str, what: str) -> SessionFileError:
    return SessionFileError(f"{shown} {what}; `restkv sessions list` shows what was kept")


def _check_sizes(stream: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Refuse a file from elsewhere that would make us allocate more than it has bytes."""
    parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("its parts are compressed")
    if sum(part.file_size for part in parts) > os.fstat(stream.fileno()).st_size:
        raise ValueError("its parts are larger than itself")


def _check_head(shown: str, meta: Any, kind: str) -> dict[str, Any]:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise SessionFileError(f"{shown} is no file of ours: its meta.json names no {FORMAT}")
    version = meta.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise SessionFileError(
            f"{shown} has format {version}, this version reads up to {VERSION}: "
            "update restkv-local, or begin anew under another name"
        )
    if meta.get("kind") != kind:
        raise SessionFileError(f"{shown} holds a {meta.get('kind')}, a {kind} was asked for")
    return meta


def _write_zip(stream: Any, text: bytes, arrays: Arrays) -> None:
    digest = hashlib.blake2b(text)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_META, text)
        for name, array in arrays.items():
            array = np.ascontiguousarray(array)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
            digest.update(array.data.cast("B") if array.size else b"")
        archive.writestr(_DIGEST, digest.hexdigest())


def _read_arrays(
    archive: zipfile.ZipFile, text: bytes, meta: dict[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    digest = hashlib.blake2b(text)
    arrays = {}
    for name, told in meta["arrays"].items():
        if told["dtype"] not in _TYPES:
            raise ValueError(f"{name} is of type {told['dtype']}")
        data = archive.read(f"{name}.npy")
        head = io.BytesIO(data)
        np.lib.format.read_magic(head)
        np.lib.format.read_array_header_1_0(head)
        # The shape comes from meta.json: a header alone could ask for any amount of memory.
        array = np.frombuffer(data, np.dtype(told["dtype"]), offset=head.tell())
        digest.update(array.data.cast("B") if array.size else b"")
        arrays[name] = array.reshape(told["shape"])
    if archive.read(_DIGEST).decode() != digest.hexdigest():
        raise ValueError("its digest does not match")
    return arrays


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where folders can be synced."""
    if os.name != "posix":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
