"""Says in one line which package of the ``eval`` extra is missing."""

from __future__ import annotations

from importlib.util import find_spec

from restkv_local.errors import ConfigError


def check_installed(module: str, package: str, purpose: str) -> None:
    """Refuse to go on without an optional package.

    Raises
    ------
    ConfigError
        If the module cannot be found.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"{purpose} needs {package}, which is missing: pip install 'restkv-local[eval]'"
        )
