"""The cells of an evaluation: every combination of rules for what stays in the cache, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from restkv_local.allocators.registry import make_allocator
from restkv_local.config import Config, parse_budget
from restkv_local.policies.registry import POLICIES, make_policy


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination, in the words of the command line."""

    policy: str
    allocation: str
    budget: str
    prefill: str
    positions: str

    @property
    def evicts(self) -> bool:
        """Whether any row can go; of a policy that only the log knows, supposed."""
        return self.policy not in POLICIES or POLICIES[self.policy].evicts

    @property
    def is_whole(self) -> bool:
        """Whether the prompt is read whole, and cut at its end if at all."""
        return self.prefill == "full"

    @property
    def components(self) -> tuple[str, str]:
        """What scores a row and what shares rows out, as logs name them."""
        return f"policy {self.policy}", f"allocation {self.allocation}"

    @property
    def rule(self) -> str:
        """All but the budget in a few words: what a line of a plot is called."""
        words = [self.policy]
        if self.evicts:
            words += [self.allocation, self.prefill]
            words += [self.positions] if self.positions != "auto" else []
        return " ".join(words)

    def __str__(self) -> str:
        """Name the cell in one line."""
        return f"{self.rule} {self.budget}" if self.evicts else self.rule


# What everything is compared with. Where no row goes, the other rules say nothing.
FULL: Final = Cell("full", "uniform", "100%", "full", "auto")


def make_cells(
    policies: Sequence[str],
    allocations: Sequence[str],
    budgets: Sequence[str],
    prefills: Sequence[str],
    positions: Sequence[str],
) -> list[Cell]:
    """Return the grid, a policy that evicts nothing once.

    Raises
    ------
    ConfigError
        If a name or a value is unknown.
    """
    for policy in policies:
        make_policy(policy)
    for allocation in allocations:
        make_allocator(allocation)
    budgets = [_write_budget(budget) for budget in budgets]
    for prefill, place in product(prefills, positions):
        choices: dict[str, Any] = {"prefill": prefill, "positions": place}
        Config(**choices)
    cells = (Cell(*names) for names in product(policies, allocations, budgets, prefills, positions))
    return list(dict.fromkeys(cell if cell.evicts else FULL for cell in cells))


def _write_budget(budget: str) -> str:
    """Return a budget in the one form that logs and tables have: 25.0% and 25% are one cell."""
    spec = parse_budget(budget)
    if spec.kind == "bytes":
        return budget.strip()
    return f"{spec.value:.15g}%" if spec.kind == "percent" else f"{int(spec.value)}"


def read_whole(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells for texts that are always read whole and never answered: two rules fewer."""
    return list(dict.fromkeys(replace(cell, prefill="full", positions="auto") for cell in cells))
