"""Says in one line which package of an extra is missing."""

from __future__ import annotations

from importlib.util import find_spec

from restkv_local.errors import ConfigError


def check_installed(module: str, package: str, purpose: str, *, extra: str) -> None:
    """Refuse to go on without an optional package.

    Parameters
    ----------
    module, package : str
        What is imported, and what it is called to pip.
    purpose : str
        What needs it: how the message begins.
    extra : str
        The extra of ours that it belongs to.

    Raises
    ------
    ConfigError
        If the module cannot be found.
    """
    if find_spec(module) is None:
        raise ConfigError(
            f"{purpose} needs {package}, which is missing: pip install 'restkv-local[{extra}]'"
        )
