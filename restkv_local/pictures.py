"""What all pictures share: what is checked before minutes of work, a figure, a way to a file. Needs matplotlib."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from restkv_local.errors import ConfigError, InputError
from restkv_local.optional import check_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI: Final = 150


def check_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises
    ------
    ConfigError
        If it is not installed; the message names the extra.
    """
    check_installed("matplotlib", "matplotlib", "a picture", extra="plot")


def check_picture(path: Path) -> None:
    """Refuse early what would fail after minutes of work.

    Raises
    ------
    ConfigError
        If matplotlib is not installed, or ``path`` cannot be a file.
    """
    check_matplotlib()
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a directory; name a file for the picture")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first")


def open_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, whose parts make room for each other."""
    # No pyplot: it would choose a backend that may want a screen.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG; a file that exists is replaced.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=_DPI, format="png")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
