"""What a measurement must say about itself to be believed, or repeated: model, software, machine, settings."""

from __future__ import annotations

import platform
from typing import Any

import psutil

from restkv_local.model.model_file import ModelShape
from restkv_local.native import library_info
from restkv_local.storage.fingerprint import fingerprint_model
from restkv_local.version import __version__


def collect_metadata(shape: ModelShape, settings: dict[str, Any]) -> dict[str, Any]:
    """Gather everything that two cells must share for their ratio to mean something.

    Parameters
    ----------
    shape : ModelShape
        The model.
    settings : dict
        What all cells have in common; ``n_threads`` of 0 becomes the number it stands for.

    Returns
    -------
    dict
        JSON values.
    """
    library = library_info()
    n_threads = settings["n_threads"] or psutil.cpu_count(logical=False) or 1
    return {
        "model": shape.name,
        "architecture": shape.arch,
        "quantisation": shape.quantisation,
        "model_bytes": shape.file_bytes,
        "fingerprint": fingerprint_model(shape.path),
        "version": __version__,
        "llama_cpp": f"{library['pin']}, ABI {library['abi']}",
        "system": f"{platform.system()} {platform.machine()}",
        "devices": [device["description"] for device in library["devices"]],
        "cpu_count": psutil.cpu_count(logical=False) or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        **settings,
        "n_threads": n_threads,
    }
