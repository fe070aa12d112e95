"""Folders that may grow so large: the least recently used file goes first."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def mark_used(path: Path) -> None:
    """Note that a file was used now: the modification time is the age that :func:`prune` looks at."""
    with suppress(OSError):
        os.utime(path)


def prune(folder: Path, suffix: str, limit_bytes: int, *, keep: Path) -> None:
    """Remove files until those that are left fit.

    Parameters
    ----------
    folder : Path
        Where they are.
    suffix : str
        What their names end with; other files neither count nor go.
    limit_bytes : int
        What they may take together.
    keep : Path
        The one that stays, were it the only one.
    """
    files: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in folder.glob(f"*{suffix}"):
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
