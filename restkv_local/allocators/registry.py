"""Names of the allocators; the command line and the contract tests read this table."""

from __future__ import annotations

from typing import Final, TypeVar

from restkv_local.allocators.ada import Ada
from restkv_local.allocators.base import Allocator
from restkv_local.allocators.cake import Cake
from restkv_local.allocators.global_ import Global
from restkv_local.allocators.pyramid import Pyramid
from restkv_local.allocators.uniform import Uniform
from restkv_local.errors import ConfigError
from restkv_local.policies.base import Policy, observes_attention

ALLOCATORS: Final[dict[str, type[Allocator]]] = {
    allocator.name: allocator for allocator in (Uniform, Pyramid, Ada, Cake, Global)
}

BUILT_IN_ALLOCATORS: Final = frozenset(ALLOCATORS)

A = TypeVar("A", bound=Allocator)


def register_allocator(allocator: type[A]) -> type[A]:
    """Add an allocator of your own, as `register_policy` does a policy.

    Raises
    ------
    ConfigError
        If the name is that of a built-in allocation.
    """
    if allocator.name in BUILT_IN_ALLOCATORS:
        raise ConfigError(f"allocation={allocator.name!r} is built in; give yours another name")
    ALLOCATORS[allocator.name] = allocator
    return allocator


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


def serves(allocator: Allocator | type[Allocator], policy: Policy) -> bool:
    """Tell whether an allocator can split the policy's rows: not by attention that it never observes."""
    return not allocator.reductions or not policy.evicts or observes_attention(policy)


def check_pair(allocator: Allocator, policy: Policy) -> None:
    """Refuse an allocator that cannot split the policy's rows.

    Raises
    ------
    ConfigError
        If it splits by attention that the policy does not observe.
    """
    if not serves(allocator, policy):
        raise ConfigError(
            f"allocation={allocator.name!r} splits by attention that policy={policy.name!r} does not observe;"
            " choose a policy that does (restkv, snapkv, caote, ...) or another allocation"
        )
