"""Names of the allocators; the command line and the contract tests read this table."""

from __future__ import annotations

from typing import Final

from restkv_local.allocators.ada import Ada
from restkv_local.allocators.base import Allocator
from restkv_local.allocators.cake import Cake
from restkv_local.allocators.global_ import Global
from restkv_local.allocators.pyramid import Pyramid
from restkv_local.allocators.uniform import Uniform
from restkv_local.errors import ConfigError

ALLOCATORS: Final[dict[str, type[Allocator]]] = {
    allocator.name: allocator for allocator in (Uniform, Pyramid, Ada, Cake, Global)
}


def make_allocator(name: str) -> Allocator:
    """Build an allocator by name.

    Raises
    ------
    ConfigError
        If the name is unknown.
    """
    if name not in ALLOCATORS:
        known = ", ".join(ALLOCATORS)
        raise ConfigError(f"allocation must be one of {known}; got allocation={name!r}")
    return ALLOCATORS[name]()
