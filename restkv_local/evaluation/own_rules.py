"""Which code a policy or an allocation of a user's own is: the same name may be another rule the next time."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError

from restkv_local.allocators.registry import ALLOCATORS, BUILT_IN_ALLOCATORS
from restkv_local.evaluation.grid import Cell
from restkv_local.policies.registry import BUILT_IN_POLICIES, POLICIES


def fingerprint_rules(cells: Iterable[Cell]) -> dict[str, str]:
    """Hash the files of the rules that a grid has and that are not built in.

    Returns
    -------
    dict of str to str
        For ``policy NAME`` and ``allocation NAME`` the SHA-256 of the file that defines it: a helper in that file
        counts like the rule itself. Of what is in no file, as in a notebook, of its methods; empty where Python
        knows no source at all.
    """
    rules: dict[str, type] = {}
    for cell in cells:
        policy, allocation = cell.components
        if cell.policy not in BUILT_IN_POLICIES:
            rules[policy] = POLICIES[cell.policy]
        if cell.allocation not in BUILT_IN_ALLOCATORS:
            rules[allocation] = ALLOCATORS[cell.allocation]
    return {name: _fingerprint(rule) for name, rule in rules.items()}


def _fingerprint(rule: type) -> str:
    source = _read_file(rule) or "".join(_read_methods(rule)).encode()
    return hashlib.sha256(source).hexdigest() if source else ""


def _read_file(rule: type) -> bytes:
    try:
        return Path(inspect.getfile(rule)).read_bytes()
    except (OSError, TypeError):
        return b""


def _read_methods(rule: type) -> Iterator[str]:
    """Yield the source of each method; a class in no file has none of its own."""
    for member in vars(rule).values():
        method = getattr(member, "__func__", member)
        if inspect.isfunction(method) and method.__module__ == rule.__module__:
            # What a decorator made has none; the file that a method names may be no Python.
            with suppress(OSError, SyntaxError, TokenError):
                yield inspect.getsource(method)
