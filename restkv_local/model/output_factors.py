"""Turns each attention output matrix W_O into small per-head factors that keep its norms.

A policy needs ``||x W_O^h||`` for many rows ``x`` of one head's values. With ``G = W_O^h W_O^h^T``
(d by d) and any ``F F^T = G`` the same number is ``||x F||``, at d columns instead of n_embd.
The factors depend on the weights alone, so they are computed once per file and cached on disk.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from platformdirs import user_cache_path

from restkv_local.errors import ModelError, UnsupportedModelError
from restkv_local.model.gguf_header import Header, TensorInfo, read_header, show_path
from restkv_local.model.model_file import ModelShape
from restkv_local.types import F32

HADAMARD_SIZE = 64  # llama.cpp rotates V in blocks of 64, whatever the head size
CACHE_LIMIT_BYTES = 2 << 30

_log = logging.getLogger(__name__)

# Bump with any change of what the numbers mean: old files are then never found again.
_MAGIC = b"RESTKVF1"
# magic, fingerprint, n_layers, n_head, d, crc32 of the data
_HEAD = struct.Struct("<8s32sIIII")
# 1 Mi weights at a time: the float32 block and dequantize()'s temporaries stay in the CPU cache.
_BLOCK_ELEMENTS = 1 << 20
_SAMPLE_BYTES = 4096
_STALE_SECONDS = 24 * 3600


def load_output_factors(
    shape: ModelShape,
    *,
    cache_dir: Path | None = None,
    cache_limit_bytes: int = CACHE_LIMIT_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, F32]]:
    """Yield the factors of each full-attention layer, from the disk cache when it has them.

    Parameters
    ----------
    shape : ModelShape
        A model that passed ``check_supported``.
    cache_dir : Path, optional
        Folder of the cache; the user's cache folder by default.
    cache_limit_bytes : int
        Total size of the cache; least recently used files are removed above it. 0 turns it off.
    on_progress : callable, optional
        Called with (layers done, layers) while factors are computed, not when they are read.

    Yields
    ------
    layer : int
        Index of the layer, ascending.
    factors : ndarray of shape (n_head, d, d), float32
        ``norm(x @ factors[h]) == norm(x @ W_O^h)`` for a row ``x`` of head ``h``. Owned by the
        caller. One layer is in memory at a time.

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
    header = read_header(shape.path)
    tensors = _output_tensors(header, shape)
    folder = cache_dir if cache_dir is not None else default_cache_dir()
    expected = _HEAD.size + len(tensors) * shape.n_head * shape.head_dim_v**2 * 4
    use_cache = cache_limit_bytes > 0
    if use_cache and expected > cache_limit_bytes:
        _log.warning(
            "factors of %s need %d MiB, above the cache limit of %d MiB: they are not cached",
            show_path(shape.path),
            expected >> 20,
            cache_limit_bytes >> 20,
        )
        use_cache = False
    if not use_cache:
        yield from _compute_all(header, shape, tensors, on_progress)
        return
    fingerprint = _fingerprint(header, tensors)
    path = folder / f"{fingerprint.hex()[:32]}.factors"
    size = (len(tensors), shape.n_head, shape.head_dim_v)
    if stream := _open_valid(path, fingerprint, size):
        with stream:
            _touch(path)
            for layer, factors in _read_cached(stream, [layer for layer, _ in tensors], size):
                yield layer, factors
                tensors = tensors[1:]
        # Whole when it was opened; what could not be read since then is computed.
        yield from _compute_all(header, shape, tensors, on_progress)
        return
    with _CacheWriter(path, fingerprint, size) as writer:
        for layer, factors in _compute_all(header, shape, tensors, on_progress):
            writer.add(factors)
            yield layer, factors
        writer.commit()
    _prune(folder, cache_limit_bytes, keep=path)


def factor_gram(gram: F32) -> F32:
    """Factors ``F`` with ``F @ F.T == gram`` for a stack of Gram matrices.

    Parameters
    ----------
    gram : ndarray of shape (n, d, d)
        Symmetric, positive semi-definite up to rounding; any rank.

    Returns
    -------
    ndarray of shape (n, d, d), float32
        Lower triangular where Cholesky succeeds. Finite.
    """
    # float64: Cholesky of a nearly singular matrix loses its last columns to rounding.
    wide = np.asarray(gram, np.float64)
    factors = np.empty(wide.shape, np.float32)
    for i, matrix in enumerate(wide):
        try:
            factors[i] = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            # Rank-deficient: rounding made an eigenvalue zero or negative. It counts as zero.
            values, vectors = np.linalg.eigh(matrix)
            factors[i] = vectors * np.sqrt(np.maximum(values, 0.0))
    return factors


def fold_v_rotation(factors: F32) -> F32:
    """Factors for rows of V that llama.cpp stores rotated.

    Parameters
    ----------
    factors : ndarray of shape (..., d, d), float32
        Factors for plain rows; ``d`` must be a multiple of 64, as llama.cpp requires to rotate.

    Returns
    -------
    ndarray of shape (..., d, d), float32
        ``H @ factors``: a stored row is ``v @ H``, and the block-diagonal Walsh-Hadamard matrix
        ``H`` is symmetric and its own inverse, so ``(v @ H) @ (H @ F) == v @ F``.
    """
    d = factors.shape[-2]
    if d % HADAMARD_SIZE:
        raise ValueError(f"V is rotated in blocks of {HADAMARD_SIZE}; got a head of {d} values")
    blocks = factors.reshape(*factors.shape[:-2], d // HADAMARD_SIZE, HADAMARD_SIZE, -1)
    folded: F32 = (hadamard(HADAMARD_SIZE) @ blocks).reshape(factors.shape)
    return folded


def hadamard(n: int) -> F32:
    """Orthonormal Walsh-Hadamard matrix of shape (n, n), float32, natural order; n a power of 2."""
    if n < 1 or n & (n - 1):
        raise ValueError(f"a Walsh-Hadamard matrix needs a power of 2; got {n}")
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    orthonormal: F32 = (matrix / np.sqrt(np.float32(n))).astype(np.float32)
    return orthonormal


def default_cache_dir() -> Path:
    """Folder of the factor cache in the user's cache folder."""
    return user_cache_path("restkv-local") / "factors"


# one layer


def _output_tensors(header: Header, shape: ModelShape) -> list[tuple[int, TensorInfo]]:
    return [(layer, _output_tensor(header, shape, layer)) for layer in shape.full_layers]


def _output_tensor(header: Header, shape: ModelShape, layer: int) -> TensorInfo:
    name = f"blk.{layer}.attn_output.weight"
    tensor = header.tensors.get(name)
    shown = show_path(shape.path)
    way_out = "choose a policy that does not need W_O, or switch it off (use_wo=False)"
    if tensor is None:
        raise UnsupportedModelError(f"{shown} has no tensor {name!r}; {way_out}")
    wanted = (shape.n_head * shape.head_dim_v, shape.n_embd)
    if tensor.ne != wanted:
        raise UnsupportedModelError(
            f"{shown}: {name} has shape {list(tensor.ne)}, {list(wanted)} is needed; {way_out}"
        )
    # Q2_0 exists in llama.cpp only; newer types may come.
    if tensor.type not in set(GGMLQuantizationType):
        raise UnsupportedModelError(
            f"{shown}: {name} is stored as {tensor.type_name}, which cannot be decoded here; "
            f"{way_out}"
        )
    return tensor


def _scale(header: Header, layer: int) -> float:
    """Factor that llama.cpp multiplies the projected output by; 1 for nearly every model."""
    tensor = header.tensors.get(f"blk.{layer}.attn_output.scale")
    if tensor is None:
        return 1.0
    if tensor.ne != (1,) or tensor.type_name != "F32":
        raise UnsupportedModelError(
            f"{show_path(header.path)}: {tensor.name} is not one float32 number"
        )
    return float(_map(tensor).view("<f4")[0])


def _map(tensor: TensorInfo) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    try:
        return np.memmap(
            tensor.path, np.uint8, mode="r", offset=tensor.offset, shape=(tensor.n_bytes,)
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot read {tensor.name} of {show_path(tensor.path)}: {error}"
        ) from error


def _factor_layer(shape: ModelShape, tensor: TensorInfo, scale: float) -> F32:
    n_head, d, n_embd = shape.n_head, shape.head_dim_v, shape.n_embd
    kind = GGMLQuantizationType(tensor.type)
    # A row of the stored matrix is one output feature: (n_embd, n_head * d).
    stored = _map(tensor).reshape(n_embd, -1)
    step = max(1, _BLOCK_ELEMENTS // (n_head * d))
    gram = np.zeros((n_head, d, d), np.float32)
    for first in range(0, n_embd, step):
        try:
            rows = dequantize(stored[first : first + step], kind)
        except NotImplementedError as error:
            raise UnsupportedModelError(
                f"{show_path(shape.path)}: {tensor.name} is stored as {tensor.type_name}, which "
                "the installed gguf package cannot decode; upgrade it or switch W_O off"
            ) from error
        # (n_head, rows, d): each head's slice stays strided, BLAS takes it as it is.
        heads = rows.astype(np.float32, copy=False).reshape(-1, n_head, d).transpose(1, 0, 2)
        gram += heads.transpose(0, 2, 1) @ heads
    if not np.isfinite(gram).all():
        raise ModelError(
            f"{show_path(shape.path)}: {tensor.name} holds values that are not finite; "
            "download the model again"
        )
    factors = factor_gram(gram)
    factors *= np.float32(abs(scale))
    return factors


def _compute_all(
    header: Header,
    shape: ModelShape,
    tensors: list[tuple[int, TensorInfo]],
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, F32]]:
    for done, (layer, tensor) in enumerate(tensors, start=1):
        factors = _factor_layer(shape, tensor, _scale(header, layer))
        if on_progress is not None:
            on_progress(done, len(tensors))
        yield layer, factors


# disk cache


def _fingerprint(header: Header, tensors: list[tuple[int, TensorInfo]]) -> bytes:
    """Identity of the weights: sizes, times, header, and samples of each tensor used."""
    digest = hashlib.sha256(_MAGIC)
    digest.update(header.digest)
    try:
        for part in header.parts:
            status = part.stat()
            digest.update(struct.pack("<qq", status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise ModelError(f"cannot read {show_path(header.path)}: {error}") from error
    for layer, tensor in tensors:
        data = _map(tensor)
        digest.update(struct.pack("<qd", layer, _scale(header, layer)))
        for start in (0, tensor.n_bytes // 2, max(tensor.n_bytes - _SAMPLE_BYTES, 0)):
            digest.update(data[start : start + _SAMPLE_BYTES].tobytes())
    return digest.digest()


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


def _read_cached(
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


def _touch(path: Path) -> None:
    """Mark as used now: the modification time is the age that pruning looks at."""
    with suppress(OSError):
        os.utime(path)


class _CacheWriter:
    """Writes beside the final name and renames at the end, so that a file is whole or absent."""

    def __init__(self, path: Path, fingerprint: bytes, size: tuple[int, int, int]) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._size = size
        self._crc = 0
        self._temporary: Path | None = None

    def __enter__(self) -> _CacheWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                prefix=self._path.stem, suffix=".part", dir=self._path.parent
            )
            self._temporary = Path(name)
            self._stream = os.fdopen(handle, "wb")
            self._stream.write(b"\0" * _HEAD.size)
        except OSError as error:
            self._give_up(error)
        return self

    def add(self, factors: F32) -> None:
        if self._temporary is None:
            return
        data = np.ascontiguousarray(factors, "<f4").tobytes()
        self._crc = zlib.crc32(data, self._crc)
        try:
            self._stream.write(data)
        except OSError as error:
            self._give_up(error)

    def commit(self) -> None:
        if self._temporary is None:
            return
        try:
            self._stream.seek(0)
            self._stream.write(_HEAD.pack(_MAGIC, self._fingerprint, *self._size, self._crc))
            self._stream.close()
            self._temporary.replace(self._path)
            self._temporary = None
        except OSError as error:
            self._give_up(error)

    def __exit__(self, *exception: object) -> None:
        # Not committed: the caller stopped early, so the file is not whole.
        self._discard()

    def _give_up(self, error: OSError) -> None:
        _log.warning(
            "cannot write the factor cache %s: %s; the next start computes the factors again",
            self._path,
            error.strerror or error,
        )
        self._discard()

    def _discard(self) -> None:
        if self._temporary is not None:
            with suppress(OSError):
                self._stream.close()
            with suppress(OSError):
                self._temporary.unlink()
            self._temporary = None


def _prune(folder: Path, limit_bytes: int, *, keep: Path) -> None:
    """Remove the least recently used files until the folder fits; ``keep`` stays."""
    # What a killed run left behind; a living one is younger.
    with suppress(OSError):
        for path in folder.glob("*.part"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
    files: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in folder.glob("*.factors"):
            with suppress(OSError):  # another process may have removed it
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit_bytes:
            return
        if path != keep:
            with suppress(OSError):
                path.unlink()
                total -= size
