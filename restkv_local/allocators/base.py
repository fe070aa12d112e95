"""What an allocator is: it splits a total over layers and KV heads, and loses nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

import numpy as np

from restkv_local.errors import PlanError
from restkv_local.types import F32, F64, I32, Bool, Observation, Reduction

# Share of the largest wish that every head has at least: below any rounding, but where all the
# others are full even a head that wants nothing takes what is left.
_FAINT: Final = 1e-9

# Digits of a remainder that count: what lies below is rounding, and must not break a tie.
_DIGITS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What there is to split, and between whom.

    Attributes
    ----------
    budget : int
        Rows of a layer and KV head on average.
    n_rows : ndarray of shape (n_layer, n_head_kv), int32
        Rows in use.
    candidates : ndarray of shape (n_layer, n_head_kv, n_kv), bool
        Rows that are there and not protected.
    n_most : int
        Rows that no KV head may exceed.
    scores : ndarray of shape (n_layer, n_head_kv, n_kv), float32
        Finite; higher means keep.
    observations : sequence over layers of Observation
        With the allocator's own reductions if the policy observes attention.
    comparable : bool
        Whether scores mean the same in every KV head of every layer.
    """

    budget: int
    n_rows: I32
    candidates: Bool
    n_most: int
    scores: F32
    observations: Sequence[Observation]
    comparable: bool = False

    @property
    def total(self) -> int:
        """Rows to give out: the budget of all heads, or every row where there are fewer."""
        return min(self.budget * self.n_rows.size, int(self.most.sum()))

    @property
    def least(self) -> I32:
        """Protected rows: (n_layer, n_head_kv)."""
        protected: I32 = self.n_rows - np.count_nonzero(self.candidates, axis=-1).astype(np.int32)
        return protected

    @property
    def most(self) -> I32:
        """Rows that each KV head can make use of: (n_layer, n_head_kv)."""
        return np.minimum(self.n_rows, max(self.n_most, 0))


class Allocator(Protocol):
    """Splits the rows of a cache over layers and KV heads. Frozen, no I/O; knobs are dataclass fields.

    Attributes
    ----------
    name : str
        Name in the registry and on the command line.
    summary : str
        The idea in one line.
    source : str
        Where the idea comes from.
    equal : bool
        True if every KV head always gets the same.
    reductions : tuple of Reduction
        Reductions of the attention that it needs beside the policy's.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    equal: ClassVar[bool] = False
    reductions: ClassVar[tuple[Reduction, ...]] = ()

    @abstractmethod
    def allocate(self, demand: Demand) -> I32:
        """Split ``demand.total`` rows.

        Returns
        -------
        ndarray of shape (n_layer, n_head_kv), int32
            Sums to ``demand.total`` exactly, each within ``demand.least`` and ``demand.most``.

        Raises
        ------
        PlanError
            If the protected rows alone exceed the total.
        """
        ...


def check_demand(demand: Demand) -> None:
    """Refuse what no allocation can meet.

    Raises
    ------
    PlanError
        If more rows are protected than there are to give out, or than a KV head may hold.
    """
    least, most = demand.least, demand.most
    remedy = "raise the budget or lower n_sink, n_recent or the pinned prompt"
    if (least > most).any():
        layer, head = np.unravel_index(np.argmax(least - most), least.shape)
        raise PlanError(
            f"{least[layer, head]} rows of layer {layer}, KV head {head} are protected but it may"
            f" hold only {most[layer, head]}; {remedy}"
        )
    if least.sum() > demand.total:
        raise PlanError(
            f"{least.sum()} rows are protected but a budget of {demand.budget} rows for each of"
            f" {least.size} KV heads holds only {demand.total}; {remedy}"
        )


def check_allocation(allocation: I32, demand: Demand, name: str) -> None:
    """Refuse what an allocator returned against its word.

    Raises
    ------
    PlanError
        If it is of another shape, not the total, or outside the limits of a KV head.
    """
    if np.shape(allocation) != demand.n_rows.shape:
        raise PlanError(
            f"allocation={name!r} must return rows of shape (n_layer, n_head_kv) = {demand.n_rows.shape};"
            f" got {np.shape(allocation)}"
        )
    least, most = demand.least, demand.most
    if allocation.sum() != demand.total or (allocation < least).any() or (allocation > most).any():
        raise PlanError(
            f"allocation={name!r} must share out {demand.total:,} rows, each KV head's within least and most of its"
            f" demand; got {int(allocation.sum()):,} of {allocation.min():,} to {allocation.max():,}: fit_total() keeps"
            " to both"
        )


def fit_total(wanted: F64, demand: Demand) -> I32:
    """Round what an allocator wants to rows, within the limits of each head and to the exact total.

    Parameters
    ----------
    wanted : ndarray of shape (n_layer, n_head_kv), float64
        Rows, protected ones included; finite. Only proportions count.
    demand : Demand
        Its limits and its total.

    Returns
    -------
    ndarray of shape (n_layer, n_head_kv), int32

    Raises
    ------
    PlanError
        As in `check_demand`.
    """
    check_demand(demand)
    return fit_rows(wanted, demand.least, demand.most, demand.total)


def fit_rows(wanted: F64, least: I32, most: I32, total: int) -> I32:
    """Share ``total`` rows in proportion to ``wanted``, each share within its limits.

    What a limit cuts off goes to the others in proportion to what they want:
    ``clip(scale * wanted, least, most)`` with the one scale that gives the
    total. Fractions are rounded by largest remainder; of equal ones the first
    in the array (lower layer, then lower head) is rounded up.

    Parameters
    ----------
    wanted : ndarray of any shape, float64
        Finite; below 0 counts as 0. Where nobody wants anything all are alike.
    least, most : ndarray of the same shape, int32
        ``least <= most``, and their sums enclose ``total``.
    total : int
        Rows to share.

    Returns
    -------
    ndarray of the same shape, int32
    """
    # By a power of two, which rounds nothing: the least numbers there are have no reciprocal.
    wanted = np.ldexp(wanted, -np.frexp(wanted.max(initial=0.0))[1])
    faint = _FAINT * wanted.max(initial=0.0)
    weights = np.maximum(wanted, faint) if faint > 0 else np.ones(wanted.shape)
    shares = np.zeros(wanted.shape)
    final = np.zeros(wanted.shape, bool)
    while not final.all():
        scale = (total - shares[final].sum()) / weights[~final].sum()
        free = np.where(final, shares, scale * weights)
        shares = np.clip(free, least, most)
        surplus = float((shares - free).sum())
        if surplus == 0:
            break
        # Raised by more than was cut: the scale can only fall, so what was raised stays where it is,
        # and the other way round. What moved the other way is tried again.
        final |= shares > free if surplus > 0 else shares < free
    rows = np.floor(shares).astype(np.int32)
    remainder = (shares - rows).round(_DIGITS)
    n_more = total - int(rows.sum())
    rows.flat[np.argsort(-remainder, axis=None, kind="stable")[:n_more]] += 1
    return rows
