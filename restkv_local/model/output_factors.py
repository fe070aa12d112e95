"""Turns each attention output matrix W_O into small per-head factors that keep its norms.

A policy needs ``||x W_O^h||`` for many rows ``x`` of one head's values. With ``G = W_O^h W_O^h^T``
(d by d) and any ``F F^T = G`` the same number is ``||x F||``, at d columns instead of n_embd.
The factors depend on the weights alone: ``storage.factor_cache`` keeps them from one run to the next.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from restkv_local.control_characters import show_path
from restkv_local.errors import ModelError, UnsupportedModelError
from restkv_local.model.gguf_header import Header, TensorInfo, read_header
from restkv_local.model.model_file import ModelShape
from restkv_local.types import F32

HADAMARD_SIZE = 64  # llama.cpp rotates V in blocks of 64, whatever the head size

# Bump with any change of what the numbers mean: those that were kept are then never found again.
_NUMBERS: Final = b"RESTKVF1"
# 1 Mi weights at a time: the float32 block and dequantize()'s temporaries stay in the CPU cache.
_BLOCK_ELEMENTS = 1 << 20
_SAMPLE_BYTES = 4096
_WAY_OUT: Final = "choose a policy that does without W_O, such as caote or snapkv"


class OutputMatrices:
    """W_O of each full-attention layer, as it lies in a model's file.

    Parameters
    ----------
    shape : ModelShape
        A model that passed ``check_supported``.

    Attributes
    ----------
    layers : list of int
        Indices of the layers, ascending.

    Raises
    ------
    UnsupportedModelError
        If a layer has no plain ``attn_output.weight`` of the expected shape and a known type.
    ModelError
        If the file cannot be read.
    """

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape
        self._header = read_header(shape.path)
        self._tensors = {il: _output_tensor(self._header, shape, il) for il in shape.full_layers}
        self.layers = list(self._tensors)

    def factor(self, layer: int) -> F32:
        """Compute the factors of one layer's heads.

        Returns
        -------
        ndarray of shape (n_head, d, d), float32
            ``norm(x @ factors[h]) == norm(x @ W_O^h)`` for a row ``x`` of head ``h``. Owned by the caller.

        Raises
        ------
        UnsupportedModelError
            If the installed gguf package cannot decode the weights, or their scale is no single number.
        ModelError
            If they cannot be read, or are not finite.
        """
        return _factor_layer(self._shape, self._tensors[layer], _scale(self._header, layer))

    def fingerprint(self) -> bytes:
        """Identify the weights: 32 bytes over sizes, times, header, and samples of each tensor used.

        ``storage.fingerprint`` may look past every W_O of a large file, and two files can differ in nothing else.

        Raises
        ------
        ModelError
            If the file cannot be read.
        """
        digest = hashlib.sha256(_NUMBERS)
        digest.update(self._header.digest)
        try:
            for part in self._header.parts:
                status = part.stat()
                digest.update(struct.pack("<qq", status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise ModelError(f"cannot read {show_path(self._header.path)}: {error}") from error
        for layer, tensor in self._tensors.items():
            data = _map(tensor)
            digest.update(struct.pack("<qd", layer, _scale(self._header, layer)))
            for start in (0, tensor.n_bytes // 2, max(tensor.n_bytes - _SAMPLE_BYTES, 0)):
                digest.update(data[start : start + _SAMPLE_BYTES].tobytes())
        return digest.digest()


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


# one layer


def _output_tensor(header: Header, shape: ModelShape, layer: int) -> TensorInfo:
    name = f"blk.{layer}.attn_output.weight"
    tensor = header.tensors.get(name)
    shown = show_path(shape.path)
    if tensor is None:
        raise UnsupportedModelError(f"{shown} has no tensor {name!r}; {_WAY_OUT}")
    wanted = (shape.n_head * shape.head_dim_v, shape.n_embd)
    if tensor.ne != wanted:
        raise UnsupportedModelError(
            f"{shown}: {name} has shape {list(tensor.ne)}, {list(wanted)} is needed; {_WAY_OUT}"
        )
    # Q2_0 exists in llama.cpp only; newer types may come.
    if tensor.type not in set(GGMLQuantizationType):
        raise UnsupportedModelError(
            f"{shown}: {name} is stored as {tensor.type_name}, which cannot be decoded here; "
            f"{_WAY_OUT}"
        )
    return tensor


def _scale(header: Header, layer: int) -> float:
    """Factor that llama.cpp multiplies the projected output by; 1 for nearly every model."""
    tensor = header.tensors.get(f"blk.{layer}.attn_output.scale")
    if tensor is None:
        return 1.0
    if tensor.ne != (1,) or tensor.type_name != "F32":
        raise UnsupportedModelError(
            f"{show_path(header.path)}: {tensor.name} is not one float32 number; {_WAY_OUT}"
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
                f"the installed gguf package cannot decode; upgrade it, or {_WAY_OUT}"
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
