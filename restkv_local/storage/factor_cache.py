"""Output factors, computed once for a model's weights and read from then on.

A format of its own: one layer is in memory at a time on the way to the disk and back, where a container is read and
written whole.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from platformdirs import user_cache_path

from restkv_local.control_characters import show_path
from restkv_local.model.model_file import ModelShape
from restkv_local.model.output_factors import OutputMatrices
from restkv_local.storage.part_file import PartFile
from restkv_local.storage.pruning import mark_used, prune
from restkv_local.types import F32

LIMIT_BYTES: Final = 2 << 30
_SUFFIX: Final = ".factors"

# Bump with any change of how a file is laid out.
_MAGIC: Final = b"RESTKVF1"
# magic, fingerprint, n_layers, n_head, d, crc32 of the data
_HEAD: Final = struct.Struct("<8s32sIIII")

_log = logging.getLogger(__name__)


def load_output_factors(
    shape: ModelShape, *, cache_dir: Path | None = None
) -> Iterator[tuple[int, F32]]:
    """Yield the factors of each full-attention layer, from the disk where they have been kept.

    Parameters
    ----------
    shape : ModelShape
        A model that passed ``check_supported``.
    cache_dir : Path, optional
        Where they are kept, 2 GiB at most; the user's cache folder by default.

    Yields
    ------
    layer : int
        Index of the layer, ascending.
    factors : ndarray of shape (n_head, d, d), float32
        As :meth:`OutputMatrices.factor` returns them. Owned by the caller. One layer is in memory at a time.

    Raises
    ------
    UnsupportedModelError
        If a layer has no plain ``attn_output.weight`` of the expected shape and a known type.
    ModelError
        If the file cannot be read.

    Notes
    -----
    A cache that cannot be written or is damaged costs time, never the run: it is logged as a
    warning and the factors are computed.
    """
    matrices = OutputMatrices(shape)
    layers = matrices.layers
    size = (len(layers), shape.n_head, shape.head_dim_v)
    n_bytes = _HEAD.size + len(layers) * shape.n_head * shape.head_dim_v**2 * 4
    if n_bytes > LIMIT_BYTES:
        _log.warning(
            "factors of %s need %d MiB, above the cache limit of %d MiB: they are not cached",
            show_path(shape.path),
            n_bytes >> 20,
            LIMIT_BYTES >> 20,
        )
        for layer in layers:
            yield layer, matrices.factor(layer)
        return
    folder = cache_dir if cache_dir is not None else default_cache_dir()
    fingerprint = matrices.fingerprint()
    path = folder / f"{fingerprint.hex()[:32]}{_SUFFIX}"
    if stream := _open_valid(path, fingerprint, size):
        with stream:
            mark_used(path)
            for layer, factors in _read_layers(stream, layers, size):
                yield layer, factors
                layers = layers[1:]
        # Whole when it was opened; what could not be read since then is computed.
        for layer in layers:
            yield layer, matrices.factor(layer)
        return
    with _Writer(path, fingerprint, size) as writer:
        for layer in layers:
            factors = matrices.factor(layer)
            writer.add(factors)
            yield layer, factors
        writer.commit()
    prune(folder, _SUFFIX, LIMIT_BYTES, keep=path)


def default_cache_dir() -> Path:
    """Folder of the factor cache in the user's cache folder."""
    return user_cache_path("restkv-local") / "factors"


def _open_valid(path: Path, fingerprint: bytes, size: tuple[int, int, int]) -> BinaryIO | None:
    """Open the cache file if it is whole; a damaged one is named and removed.

    It stays open to be read: another process may prune the name meanwhile, an open file remains.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("cannot read the factor cache %s: %s", path, error)
        return None
    try:
        _check(stream, fingerprint, size)
    except OSError as error:
        _log.warning("cannot read the factor cache %s: %s", path, error)
    except ValueError as error:
        _log.warning("factor cache %s is rebuilt: %s", path, error)
        with suppress(OSError):
            path.unlink()
    else:
        return stream
    stream.close()
    return None


def _check(stream: BinaryIO, fingerprint: bytes, size: tuple[int, int, int]) -> None:
    n_layers, n_head, d = size
    head = stream.read(_HEAD.size)
    if len(head) != _HEAD.size:
        raise ValueError("it is too short")
    magic, found, *found_size, expected_crc = _HEAD.unpack(head)
    if magic != _MAGIC or found != fingerprint or tuple(found_size) != size:
        raise ValueError("its head does not belong to this model")
    crc, n_bytes = 0, 0
    while block := stream.read(1 << 20):
        crc = zlib.crc32(block, crc)
        n_bytes += len(block)
    if n_bytes != n_layers * n_head * d * d * 4 or crc != expected_crc:
        raise ValueError("its data is damaged")


def _read_layers(
    stream: BinaryIO, layers: list[int], size: tuple[int, int, int]
) -> Iterator[tuple[int, F32]]:
    """Yield the layers of a file that was whole when it was opened, up to the first that cannot be read."""
    _, n_head, d = size
    n_bytes = n_head * d * d * 4
    stream.seek(_HEAD.size)
    for layer in layers:
        try:
            data = bytearray(stream.read(n_bytes))
            if len(data) < n_bytes:
                raise OSError("it has become shorter")
        except OSError as error:
            _log.warning("cannot read the factor cache from layer %d on: %s", layer, error)
            return
        yield layer, np.frombuffer(data, "<f4").reshape(n_head, d, d).astype(np.float32, copy=False)


class _Writer:
    """Writes the factors as they come; a file that cannot be written is given up with a warning."""

    def __init__(self, path: Path, fingerprint: bytes, size: tuple[int, int, int]) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._size = size
        self._crc = 0
        self._part: PartFile | None = None

    def __enter__(self) -> _Writer:
        try:
            self._part = PartFile(self._path)
            self._part.stream.write(b"\0" * _HEAD.size)
        except OSError as error:
            self._give_up(error)
        return self

    def add(self, factors: F32) -> None:
        if self._part is None:
            return
        data = np.ascontiguousarray(factors, "<f4").tobytes()
        self._crc = zlib.crc32(data, self._crc)
        try:
            self._part.stream.write(data)
        except OSError as error:
            self._give_up(error)

    def commit(self) -> None:
        if self._part is None:
            return
        try:
            self._part.stream.seek(0)
            head = _HEAD.pack(_MAGIC, self._fingerprint, *self._size, self._crc)
            self._part.stream.write(head)
            self._part.keep()
            self._part = None
        except OSError as error:
            self._give_up(error)

    def __exit__(self, *exception: object) -> None:
        # Not committed: the caller stopped early, so the file is not whole.
        self._drop()

    def _give_up(self, error: OSError) -> None:
        _log.warning(
            "cannot write the factor cache %s: %s; the next start computes the factors again",
            self._path,
            error.strerror or error,
        )
        self._drop()

    def _drop(self) -> None:
        if self._part is not None:
            self._part.drop()
            self._part = None
