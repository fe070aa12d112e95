"""The data that crosses between the cache, the policies and the planner.

Shape legend, used everywhere: ``h`` query head, ``g`` KV head, ``w`` observed
query, ``n`` row of the cache, ``d`` head dimension. A row is the K and V of one
token in one layer and KV head; rows are in token order, oldest first. Where KV
heads hold different numbers of rows they are aligned at the newest one, and the
places before a head's oldest row are absent: position -1, attention 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from restkv_local.config import DEFAULTS
from restkv_local.errors import PlanError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

Reduction = Literal["ema", "mean", "max", "last", "square", "entropy"]
Tracked = Literal["none", "sum", "last_use", "repeat", "queries"]

# The least 1 - a that a/(1 - a) divides by: float32 has no digits left below.
REST_MIN: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationRequest:
    """What a policy needs reduced where the layer lives.

    Attributes
    ----------
    reductions : tuple of Reduction
        Reductions of the attention over the observed queries, one array each.
        ``"square"`` is the mean of ``a**2``, ``"entropy"`` that of ``-a log a``.
    alpha : float
        Weight of a newer query against all older ones, for ``"ema"``.
    distance : {"none", "aggregate", "per_query"}
        ``"aggregate"``: ``||(v_n - o) W_O||_2`` for the one
        ``o = sum_n a_n v_n`` of the first reduction. ``"per_query"``:
        ``a/(1-a) * ||(v_n - o_w) W_O||_2 ** tau`` of each query, reduced over
        the queries by the first reduction.
    project : bool
        Whether distances are taken after the output projection.
    past_only : bool
        Whether ``o`` sums over the rows before the window only.
    tau : float
        Exponent of the distance, for ``"per_query"``.
    drift : bool
        Whether the mean true position of the strongest keys is wanted for the
        older and the newer half of the window.
    top_k : int
        Keys ranked per query for ``drift``.
    value_norm : bool
        Whether ``||v_n W_O||_2`` is wanted, or ``||v_n||_2`` without ``project``.
    key_score : {"none", "difference", "expected"}
        ``"difference"``: cosine of each key to the mean direction of the head's
        keys. ``"expected"``: attention expected from queries yet to come.
    """

    reductions: tuple[Reduction, ...] = ()
    alpha: float = DEFAULTS.alpha
    distance: Literal["none", "aggregate", "per_query"] = "none"
    project: bool = True
    past_only: bool = False
    tau: float = DEFAULTS.tau
    drift: bool = False
    top_k: int = 0
    value_norm: bool = False
    key_score: Literal["none", "difference", "expected"] = "none"

    def __post_init__(self) -> None:
        """Check that the request can be served."""
        if self.distance != "none" and self.reductions[:1] in ((), ("square",), ("entropy",)):
            raise ValueError(
                f"a distance needs a reduction of the attention first; got reductions={self.reductions}"
            )
        if self.drift and self.top_k < 1:
            raise ValueError(f"drift needs top_k of at least 1; got top_k={self.top_k}")

    @property
    def measures_values(self) -> bool:
        """Whether values are looked at: their distances or norms."""
        return self.distance != "none" or self.value_norm

    @property
    def projects(self) -> bool:
        """Whether values are taken after the output projection, which needs its factors."""
        return self.project and self.measures_values

    @property
    def needs_window(self) -> bool:
        """Whether at least one observed query is needed; norms come from the same pass."""
        return bool(self.reductions) or self.measures_values or self.drift

    def weights(self, reduction: Reduction, n_obs: int) -> F32:
        """Weights of the observed queries, oldest first, for a linear reduction.

        Returns
        -------
        ndarray of shape (n_obs,), float32
            They sum to 1.

        Raises
        ------
        ValueError
            For what is no weighted sum of the attention.
        """
        if reduction == "ema":
            # Seeded with the oldest query: its weight has no factor alpha.
            ages = np.arange(n_obs - 1, -1, -1, dtype=np.float64)
            weights: F64 = self.alpha * (1.0 - self.alpha) ** ages
            weights[0] = (1.0 - self.alpha) ** (n_obs - 1)
            return weights.astype(np.float32)
        if reduction == "last":
            newest: Bool = np.arange(n_obs) == n_obs - 1
            return newest.astype(np.float32)
        if reduction == "mean":
            return np.full(n_obs, 1.0 / n_obs, np.float32)
        raise ValueError(f"{reduction!r} is not a weighted sum over queries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One layer, seen by its newest queries.

    Attributes
    ----------
    layer : int
        Index of the layer.
    n_obs : int
        Observed queries; 0 if the policy asked for none.
    n_window : int
        The newest rows that belong to the observed queries themselves.
    n_layer : int
        Layers that are evicted.
    positions : ndarray of shape (n_head_kv, n_kv), int32
        True positions in the text, ascending per head; -1 where a head has no row.
    attention : dict of ndarray of shape (n_head, n_kv), float32
        Attention by name of the reduction.
    distance : ndarray of shape (n_head, n_kv), float32, or None
        For ``distance="aggregate"``.
    indicator : ndarray of shape (n_head, n_kv), float32, or None
        For ``distance="per_query"``, already reduced.
    drift : ndarray of shape (n_head, 2), float32, or None
        Mean position of the strongest keys: older half, newer half.
    value_norm : ndarray of shape (n_head, n_kv), float32, or None
        Norms of the values, projected if the request said so.
    key_score : ndarray of shape (n_head, n_kv) or (n_head_kv, n_kv), float32, or None
        Expected attention of each query head, or the cosine of each key.
    tracked : ndarray of shape (n_head_kv, n_kv), float32, or None
        What the policy has tracked since each row entered (``Policy.track``).
    event : int
        How many evictions the session has seen before.
    """

    layer: int
    n_obs: int
    n_window: int
    n_layer: int = 1
    positions: I32
    attention: dict[Reduction, F32] = field(default_factory=dict)
    distance: F32 | None = None
    indicator: F32 | None = None
    drift: F32 | None = None
    value_norm: F32 | None = None
    key_score: F32 | None = None
    tracked: F32 | None = None
    event: int = 0

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.positions.ndim != 2:
            raise ValueError(f"positions must be (n_head_kv, n_kv); got {self.positions.shape}")
        per_row = [
            *self.attention.values(), self.distance, self.indicator,
            self.value_norm, self.key_score, self.tracked,
        ]  # fmt: skip
        for array, width in chain(((a, self.n_kv) for a in per_row), ((self.drift, 2),)):
            if array is None:
                continue
            if array.ndim != 2 or array.shape[0] % self.n_head_kv or array.shape[1] != width:
                raise ValueError(
                    f"expected (n_head, {width}) with n_head a multiple of"
                    f" n_head_kv={self.n_head_kv}; got {array.shape}"
                )

    @property
    def n_head_kv(self) -> int:
        """Number of KV heads."""
        return int(self.positions.shape[0])

    @property
    def n_kv(self) -> int:
        """Number of rows of the fullest KV head."""
        return int(self.positions.shape[1])

    @property
    def n_absent(self) -> I32:
        """Places before the oldest row of each KV head: (n_head_kv,)."""
        if (self.positions[:, :1] >= 0).all():  # a pass over a column, not over all rows
            return np.zeros(self.n_head_kv, np.int32)
        absent: I32 = np.count_nonzero(self.positions < 0, axis=1).astype(np.int32)
        return absent


@dataclass(frozen=True, slots=True, eq=False)
class EvictionPlan:
    """Which rows stay, as data: nothing is done yet.

    Attributes
    ----------
    keep : ndarray of shape (n_layer, n_head_kv, n_kv), bool
        True for rows that stay.
    allocation : ndarray of shape (n_layer, n_head_kv), int32
        Rows that were allowed.
    """

    keep: Bool
    allocation: I32

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.keep.ndim != 3 or self.allocation.shape != self.keep.shape[:2]:
            raise PlanError(
                f"keep must be (n_layer, n_head_kv, n_kv) and match the allocation; got {self.keep.shape}"
                f" and an allocation of {self.allocation.shape}"
            )

    @property
    def n_keep(self) -> I32:
        """Rows that stay, per layer and KV head: (n_layer, n_head_kv)."""
        n_keep: I32 = np.count_nonzero(self.keep, axis=-1).astype(np.int32)
        return n_keep

    def rows(self, layer: int, head: int) -> I32:
        """Rows that stay in one segment, ascending."""
        return np.flatnonzero(self.keep[layer, head]).astype(np.int32)

    def moves(self) -> tuple[I64, I64]:
        """Say where every row that stays goes: aligned at the newest one.

        Returns
        -------
        source : ndarray of shape (n,)
            Where each row stands in ``keep``, flattened, in order.
        target : ndarray of shape (n,)
            Where it goes in a flattened (n_layer, n_head_kv, n_keep.max()).
        """
        n_keep = self.n_keep
        n_most = int(n_keep.max())
        filled = np.arange(n_most) >= n_most - n_keep[..., None]
        return np.flatnonzero(self.keep), np.flatnonzero(filled)

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        if not isinstance(other, EvictionPlan):
            return NotImplemented
        return np.array_equal(self.keep, other.keep) and np.array_equal(
            self.allocation, other.allocation
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Say in one line how much stays."""
        n_keep = self.n_keep
        low, high = int(n_keep.min()), int(n_keep.max())
        kept = f"{low}" if low == high else f"{low}..{high}"
        n_layer, n_head_kv, n_kv = self.keep.shape
        return f"keep {kept} of {n_kv} rows in {n_layer} layers x {n_head_kv} KV heads"


def half_window_means(per_query: F32) -> F32:
    """Average a figure of each query over the older and the newer half of the window.

    Parameters
    ----------
    per_query : ndarray of shape (n_head, n_obs)
        Oldest query first.

    Returns
    -------
    ndarray of shape (n_head, 2), float32
        With an odd ``n_obs`` the newer half is the longer one; a single query
        is both halves.
    """
    middle = per_query.shape[1] // 2
    halves = (per_query[:, : max(middle, 1)], per_query[:, middle:])
    means = [half.mean(axis=1, dtype=np.float64) for half in halves]
    return np.stack(means, axis=1).astype(np.float32)
