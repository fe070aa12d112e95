"""Global: all KV heads of all layers compete for one total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np

from restkv_local.allocators.base import Allocator, Demand, check_demand, fit_total
from restkv_local.allocators.ranking import count_selected
from restkv_local.errors import ConfigError
from restkv_local.types import F32, F64, I32

_AXES: Final = {"layer": (1, 2), "head": (2,)}


@dataclass(frozen=True, kw_only=True)
class Global(Allocator):
    """One ranking over every layer and KV head.

    Of the ``n`` best candidates of the whole cache, where ``n`` is what there
    is beside the protected rows, ``c`` belong to a head, which gets
    ``(1 - floor) * c + floor * n / n_heads``, protected rows on top.

    Attributes
    ----------
    floor : float
        Share that is split evenly whatever the scores, 0 to 1.
    normalise : {"layer", "head", "none"}
        What a score is a share of before it is compared: the sum over the
        candidates of its layer, of its head, or of nothing. Scores below 0 are
        first raised by the lowest one.

    Notes
    -----
    KVzip ranks the most attention that any query gives, LayerDefensiveKV that
    times norms of the values, both as it comes and without a floor. Scores that
    carry norms differ in scale from layer to layer, and the layer with the
    largest would take all. As shares of their layer, the default, the rows that
    stay hold the largest sum of shares, and the heads of a layer still compete;
    mean attention, whose sum is much the same in every layer, ranks as before.
    Sums, not means: with a mean, a layer that was given more rows at one event
    would rank higher for it at the next.

    The floor is that of `Ada`, with its reason: the sources score a whole text,
    here it may be one window at one event of many. `Global(floor=0,
    normalise="none")` is the sources' rule, and the one taken for a policy whose scores
    are `comparable`, as KVzip's are: they were gathered over the whole text.

    References
    ----------
    .. [1] Kim et al., "KVzip", NeurIPS 2025, arXiv:2505.23416;
       repository snu-mllab/KVzip.
    .. [2] "DefensiveKV" (LayerDefensiveKV), ICLR 2026, arXiv:2510.13334;
       repository FFY0/DefensiveKV.
    """

    name: ClassVar[str] = "global"
    summary: ClassVar[str] = "all heads of all layers compete by their scores"
    source: ClassVar[str] = (
        "KVzip, 2025, arXiv:2505.23416; LayerDefensiveKV, 2025, arXiv:2510.13334"
    )

    floor: float = 0.2
    normalise: Literal["layer", "head", "none"] = "layer"

    def __post_init__(self) -> None:
        """Refuse knobs that mean nothing."""
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor must be within [0, 1]; got floor={self.floor}")
        if self.normalise not in (*_AXES, "none"):
            raise ConfigError(
                f"normalise must be one of layer, head, none; got normalise={self.normalise!r}"
            )

    def allocate(self, demand: Demand) -> I32:
        """Split by one ranking: (n_layer, n_head_kv)."""
        check_demand(demand)
        floor = 0.0 if demand.comparable else self.floor
        least = demand.least
        n_select = demand.total - int(least.sum())
        pool = (1, least.size, -1)
        counts = count_selected(
            self._comparable(demand).reshape(pool),
            demand.candidates.reshape(pool),
            np.array([n_select], np.int32),
        ).reshape(least.shape)
        wanted = least + (1 - floor) * counts + floor * n_select / least.size
        return fit_total(wanted, demand)

    def _comparable(self, demand: Demand) -> F32 | F64:
        """Scores as shares: (n_layer, n_head_kv, n_kv)."""
        if demand.comparable or self.normalise == "none":
            return demand.scores
        axes = _AXES[self.normalise]
        scores = np.where(demand.candidates, demand.scores.astype(np.float64), 0.0)
        scores -= scores.min(axis=axes, keepdims=True, initial=0.0)
        total = np.where(demand.candidates, scores, 0.0).sum(axis=axes, keepdims=True)
        shares: F64 = scores / np.where(total > 0, total, 1.0)
        return shares
