"""Turns what a user wants compared into columns: one cache and its options each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from restkv_local.allocators.registry import check_pair, make_allocator
from restkv_local.bench import ALL_REFERENCES, REFERENCES
from restkv_local.config import DEFAULTS, Config
from restkv_local.errors import ConfigError
from restkv_local.policies.registry import make_policy


@dataclass(frozen=True, slots=True)
class Cache:
    """One column.

    Attributes
    ----------
    name : str
        Its heading.
    options : mapping
        Fields of Config.
    shifts : bool
        Whether it forgets as llama.cpp's context shift does: when no row is left for the next token, read or
        written, the older half of what follows the first ``n_sink`` goes, and the rest is renumbered.
    upstream : bool
        Whether attention is computed as llama.cpp does, not in tiles of our own: what a user of llama.cpp has.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shifts: bool = False
    upstream: bool = False


def choose_caches(
    *,
    references: Sequence[str] = REFERENCES,
    policies: Sequence[str] = (DEFAULTS.policy,),
    allocations: Sequence[str] = (DEFAULTS.allocation,),
    budgets: Sequence[int | str] = (DEFAULTS.budget,),
    **options: Any,
) -> list[Cache]:
    """Return the columns: the references, then every policy with every allocation at every budget.

    Parameters
    ----------
    references : sequence of {"full", "q8_0", "shift", "tiles", "none"}
        llama.cpp's whole cache in f16 and in q8_0, and its context shift with the rows of each budget; the whole
        cache in f16 with our own attention.
    policies, allocations : sequence of str
        Names in the registries.
    budgets : sequence of int or str
        As ``Config.budget`` has them.
    **options
        Other fields of Config, for all columns. ``type_k`` and ``type_v`` leave the whole caches alone.

    Returns
    -------
    list of Cache
        Each name once. Ratios refer to the first.

    Raises
    ------
    ConfigError
        If a name is unknown, an option out of bounds, a policy evicts nothing, or an allocation cannot split
        its rows.
    """
    _check_names(references, policies, allocations)
    stored = {name: options.pop(name, "f16") for name in ("type_k", "type_v")}
    kinds = "" if set(stored.values()) == {"f16"} else f" {stored['type_k']}/{stored['type_v']}"
    bounded = options | stored
    caches = []
    if "full" in references:
        caches.append(Cache("full", options | _WHOLE, upstream=True))
    if "q8_0" in references:
        caches.append(Cache("full q8_0", options | _WHOLE | _Q8_0, upstream=True))
    if "tiles" in references:
        caches.append(Cache("full tiles", options | _WHOLE))
    if "shift" in references:
        # The policy that keeps first and newest tokens; the bench gives it the half to keep.
        shift = bounded | {"policy": "streamingllm"}
        caches += [
            Cache(f"shift {budget}{kinds}", shift | {"budget": budget}, shifts=True, upstream=True)
            for budget in budgets
        ]
    for policy in policies:
        for allocation in allocations:
            split = "" if allocation == DEFAULTS.allocation else f" {allocation}"
            caches += [
                Cache(
                    f"{policy}{split} {budget}{kinds}",
                    bounded | {"policy": policy, "allocation": allocation, "budget": budget},
                )
                for budget in budgets
            ]
    for cache in caches:
        Config(**cache.options)
    return list({cache.name: cache for cache in caches}.values())


# Without eviction positions stay as they are, and the budget only says how many rows there are at least.
_WHOLE: Final = {
    "policy": "full",
    "positions": "auto",
    "budget": DEFAULTS.n_sink + DEFAULTS.n_recent + 1,
}
_Q8_0: Final = {"type_k": "q8_0", "type_v": "q8_0"}


def _check_names(
    references: Sequence[str], policies: Sequence[str], allocations: Sequence[str]
) -> None:
    """Refuse what could not be measured, before anything is."""
    for name in references:
        if name not in ALL_REFERENCES:
            raise ConfigError(f"reference must be one of {', '.join(ALL_REFERENCES)}; got {name!r}")
    for name in policies:
        if not make_policy(name).evicts:
            raise ConfigError(f"policy={name!r} evicts nothing: ask for it as a reference instead")
    for allocation in allocations:
        for name in policies:
            check_pair(make_allocator(allocation), make_policy(name))
