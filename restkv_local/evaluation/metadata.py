"""What scores must share to be compared, and what a run says of itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import psutil

from restkv_local.model.model_file import ModelShape
from restkv_local.native import library_info, library_stamp
from restkv_local.storage.fingerprint import fingerprint_model
from restkv_local.version import __version__, find_commit


def collect_conditions(shape: ModelShape, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Gather what decides a score besides its item and its cell.

    Parameters
    ----------
    shape : ModelShape
        The model.
    settings : mapping
        Options that all cells share, and whether there is a template.

    Notes
    -----
    Python counts because the text that ships with it differs between versions.
    """
    return {
        "model": shape.name,
        "quantisation": shape.quantisation,
        "fingerprint": fingerprint_model(shape.path),
        "version": __version__,
        "llama_cpp": library_stamp(),
        "python": platform.python_version(),
        **settings,
    }


def describe_run(arguments: Mapping[str, Any], rules: Mapping[str, str]) -> dict[str, Any]:
    """Gather what may differ between the runs that fill one log.

    Parameters
    ----------
    arguments : mapping
        The command line, as JSON values.
    rules : mapping
        Policies and allocations of the user's own, and which code they are.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": find_commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": [device["description"] for device in library_info()["devices"]],
        "cpu_count": psutil.cpu_count(logical=False) or 1,
        "rules": dict(rules),
        "arguments": dict(arguments),
    }
