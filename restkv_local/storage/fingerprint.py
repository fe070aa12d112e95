"""Turns a model file of any size into a short identity of its content, in milliseconds."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from restkv_local.control_characters import show_path
from restkv_local.errors import ModelError
from restkv_local.model.gguf_header import read_header

# 4 MiB of a file of 40 GB: any training or requantising touches weights everywhere.
_N_BLOCKS = 64
_BLOCK_BYTES = 64 << 10


def fingerprint_model(path: str | Path) -> str:
    """Hash what decides a model's output: its header, its size and evenly spaced blocks of its weights.

    Parameters
    ----------
    path : str or Path
        A GGUF file, or the first part of a split one. Name, folder and times do not count.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ModelError
        If the file cannot be read.

    Notes
    -----
    A file changed by hand between two blocks goes unnoticed; hashing all of it would take a minute.
    """
    header = read_header(path)
    digest = hashlib.sha256(header.digest)
    for part in header.parts:
        try:
            with part.open("rb") as stream:
                n_bytes = stream.seek(0, 2)
                digest.update(struct.pack("<q", n_bytes))
                last = max(n_bytes - _BLOCK_BYTES, 0)
                for i in range(_N_BLOCKS):
                    stream.seek(last * i // (_N_BLOCKS - 1))
                    digest.update(stream.read(_BLOCK_BYTES))
        except OSError as error:
            raise ModelError(f"cannot read {show_path(part)}: {error.strerror or error}") from error
    return digest.hexdigest()
