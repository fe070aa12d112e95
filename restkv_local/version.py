"""Which code this is: the version from the installed package's metadata, the commit from its checkout."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("restkv-local")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


def find_commit() -> str | None:
    """Return the commit of the checkout that this package is run from, marked if files differ; None without."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    command = ("git", "-C", str(folder), "describe", "--always", "--dirty=+changes", "--exclude=*")
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None
