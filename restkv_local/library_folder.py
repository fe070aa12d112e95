"""Where the patched library lies: asked before anything else is imported, so without NumPy."""

from __future__ import annotations

import os
from pathlib import Path

from restkv_local.errors import LibraryNotFoundError

HOW_TO_BUILD = "build it with `make setup` or `pip install .`, or name one in RESTKV_LIBRARY"


def library_folder() -> Path:
    """Return the folder that holds libllama: ``RESTKV_LIBRARY`` (file or folder), else the package's own.

    Raises
    ------
    LibraryNotFoundError
        If there is none; the message names the places and says how to build it.
    """
    import restkv_local

    if override := os.environ.get("RESTKV_LIBRARY"):
        path = Path(override)
        folders = [path.parent if path.is_file() else path]
    else:
        # An editable install has two folders: the sources and the built part in site-packages.
        folders = [Path(entry) / "lib" for entry in restkv_local.__path__]
    for folder in folders:
        if any(folder.glob("*llama.*")):
            return folder.resolve()
    looked = ", ".join(str(folder) for folder in folders)
    raise LibraryNotFoundError(f"no patched llama library in {looked}: {HOW_TO_BUILD}")
