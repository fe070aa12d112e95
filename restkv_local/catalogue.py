"""The registries as data: what each policy and allocator does, where it comes from, what it looks at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from restkv_local.allocators.registry import ALLOCATORS, serves
from restkv_local.config import DEFAULTS
from restkv_local.policies.base import Policy, observes_attention
from restkv_local.policies.registry import POLICIES, make_policy
from restkv_local.types import Tracked

Need = Literal["attention", "all queries", "keys", "positions"]


def list_needs(policy: Policy) -> list[Need]:
    """Say what a policy decides from.

    Returns
    -------
    list of str
        ``"attention"`` of the observed window, figures of ``"all queries"`` so far, the ``"keys"`` in the
        cache; ``"positions"`` alone where nothing is observed. Empty for a policy that decides nothing.
    """
    if not policy.evicts:
        return []
    request = policy.request(DEFAULTS.n_obs, 0, 1)
    needs: list[Need] = []
    if observes_attention(policy):
        needs.append("attention")
    if policy.track != "none":
        needs.append("all queries")
    if request is not None and request.key_score != "none":
        needs.append("keys")
    return needs or ["positions"]


def list_servable(allocation: str) -> tuple[list[str], list[str]]:
    """Sort the evicting policies by whether an allocation can split their rows.

    Returns
    -------
    served, refused : list of str
        Refused are those that observe no attention where the allocation splits by attention.
    """
    served: list[str] = []
    refused: list[str] = []
    for name in POLICIES:
        policy = make_policy(name)
        if policy.evicts:
            (served if serves(ALLOCATORS[allocation], policy) else refused).append(name)
    return served, refused


def tracked_by(policies: Iterable[str]) -> set[Tracked]:
    """Return what the policies want tracked while the text is read."""
    return {make_policy(name).track for name in policies} - {"none"}


def describe_registries() -> dict[str, Any]:
    """Return the object that ``restkv policies --json`` prints."""
    return {
        "policies": [
            {
                "name": name,
                "summary": policy.summary,
                "source": policy.source,
                "evicts": policy.evicts,
                "needs": list_needs(make_policy(name)),
            }
            for name, policy in POLICIES.items()
        ],
        "allocators": [
            {"name": name, "summary": allocator.summary, "source": allocator.source}
            for name, allocator in ALLOCATORS.items()
        ],
    }
