"""The data that crosses between the cache, the policies and the planner.

Shape legend, used everywhere: ``h`` query head, ``g`` KV head, ``w`` observed
query, ``n`` row of the cache, ``d`` head dimension. A row is the K and V of one
token in one layer and KV head; rows are in token order, oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from restkv_local.errors import PlanError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Bool = npt.NDArray[np.bool_]

Reduction = Literal["ema", "mean", "max", "last", "sum"]

# The least 1 - a that a/(1 - a) divides by: float32 has no digits left below.
REST_MIN: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationRequest:
    """What a policy needs reduced where the layer lives.

    Attributes
    ----------
    reductions : tuple of Reduction
        Reductions of the attention over the observed queries, one array each.
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
    """

    reductions: tuple[Reduction, ...]
    alpha: float = 0.3
    distance: Literal["none", "aggregate", "per_query"] = "none"
    project: bool = True
    past_only: bool = False
    tau: float = 1.0
    drift: bool = False
    top_k: int = 0

    def __post_init__(self) -> None:
        """Check that the request can be served."""
        if not self.reductions:
            raise ValueError("a request must name at least one reduction")
        if self.drift and self.top_k < 1:
            raise ValueError(f"drift needs top_k of at least 1; got top_k={self.top_k}")

    def weights(self, reduction: Reduction, n_obs: int) -> F32:
        """Weights of the observed queries, oldest first, for a linear reduction.

        Returns
        -------
        ndarray of shape (n_obs,), float32
            They sum to 1, except for ``"sum"``.

        Raises
        ------
        ValueError
            For ``"max"``, which is not linear.
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
        if reduction == "sum":
            return np.ones(n_obs, np.float32)
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
    positions : ndarray of shape (n_head_kv, n_kv), int32
        True positions in the text, ascending per head.
    attention : dict of ndarray of shape (n_head, n_kv), float32
        Attention by name of the reduction.
    distance : ndarray of shape (n_head, n_kv), float32, or None
        For ``distance="aggregate"``.
    indicator : ndarray of shape (n_head, n_kv), float32, or None
        For ``distance="per_query"``, already reduced.
    drift : ndarray of shape (n_head, 2), float32, or None
        Mean position of the strongest keys: older half, newer half.
    event : int
        How many evictions the session has seen before.
    """

    layer: int
    n_obs: int
    n_window: int
    positions: I32
    attention: dict[Reduction, F32] = field(default_factory=dict)
    distance: F32 | None = None
    indicator: F32 | None = None
    drift: F32 | None = None
    event: int = 0

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.positions.ndim != 2:
            raise ValueError(f"positions must be (n_head_kv, n_kv); got {self.positions.shape}")
        per_row = [*self.attention.values(), self.distance, self.indicator]
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
        """Number of rows."""
        return int(self.positions.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class EvictionPlan:
    """Which rows stay, as data: nothing is done yet.

    Attributes
    ----------
    n_kv : int
        Rows in use before the eviction.
    budget : ndarray of shape (n_layer, n_head_kv), int32
        Rows that were allowed.
    keep : sequence over layers of sequences over KV heads of int32 arrays
        Rows that stay, ascending.

    Raises
    ------
    PlanError
        If a list is not ascending, or names a row that is not there.
    """

    n_kv: int
    budget: I32
    keep: Sequence[Sequence[I32]]

    def __post_init__(self) -> None:
        """Check every keep list."""
        for layer, heads in enumerate(self.keep):
            for head, rows in enumerate(heads):
                inside = rows.size == 0 or (rows[0] >= 0 and rows[-1] < self.n_kv)
                if not inside or (rows[1:] <= rows[:-1]).any():
                    raise PlanError(
                        f"keep list of layer {layer}, KV head {head} must ascend"
                        f" within [0, {self.n_kv}); got {rows}"
                    )

    @property
    def n_keep(self) -> I32:
        """Rows that stay, per layer and KV head: (n_layer, n_head_kv)."""
        return np.array([[rows.size for rows in heads] for heads in self.keep], np.int32)

    def as_array(self) -> I32:
        """All keep lists as one array of shape (n_layer, n_head_kv, n_keep).

        Raises
        ------
        PlanError
            If the lists differ in length.
        """
        n_keep = self.n_keep
        if n_keep.min() != n_keep.max():
            raise PlanError(
                f"keep lists differ in length, {n_keep.min()} to {n_keep.max()} rows:"
                " they fit no single array"
            )
        return np.array(self.keep, np.int32)

    def __eq__(self, other: object) -> bool:
        """Compare by content."""
        if not isinstance(other, EvictionPlan):
            return NotImplemented
        return (
            self.n_kv == other.n_kv
            and np.array_equal(self.budget, other.budget)
            and np.array_equal(self.n_keep, other.n_keep)
            and all(map(np.array_equal, chain(*self.keep), chain(*other.keep)))
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Say in one line how much stays."""
        n_keep = self.n_keep
        low, high = int(n_keep.min()), int(n_keep.max())
        kept = f"{low}" if low == high else f"{low}..{high}"
        n_layer, n_head_kv = n_keep.shape
        return f"keep {kept} of {self.n_kv} rows in {n_layer} layers x {n_head_kv} KV heads"


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
