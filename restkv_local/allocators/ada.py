"""Ada-KV: the KV heads of a layer compete for its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.allocators.base import Allocator, Demand, check_demand, fit_rows
from restkv_local.allocators.ranking import count_selected
from restkv_local.errors import ConfigError
from restkv_local.types import I32


@dataclass(frozen=True, kw_only=True)
class Ada(Allocator):
    """More rows for heads with more of the layer's best scores.

    A layer with ``H`` KV heads has ``H * base`` rows for scores to choose. Of
    its ``H * base`` best candidates, all heads together, ``c_h`` belong to head
    ``h``, which gets ``(1 - floor) * c_h + floor * base``. Protected rows come
    on top and do not compete.

    Attributes
    ----------
    floor : float
        Share that is split evenly whatever the scores, 0 to 1. Scores come from
        one window, and a head that starves cannot get its rows back.

    Notes
    -----
    This is the mixture of the paper and its repository, which also advises the
    0.2 for grouped queries. kvpress ranks the best ``floor * base`` rows of each
    head first and fills the rest from the pool, so that its floor binds only
    heads below it; its rule moves more rows. The repository rounds each head for
    itself; here every layer meets its total.

    Layers get the same, as far as their rows and limits allow. Scores are
    compared between heads as they are; the repository's weighting by the
    mass of a head's best rows, off by default there, is left out.

    References
    ----------
    .. [1] Feng et al., "Ada-KV", NeurIPS 2025, arXiv:2407.11550;
       repository FFY0/AdaKV.
    """

    name: ClassVar[str] = "ada"
    summary: ClassVar[str] = "heads of a layer compete by their scores, layers get the same"
    source: ClassVar[str] = "Feng et al., Ada-KV, NeurIPS 2025, arXiv:2407.11550"

    floor: float = 0.2

    def __post_init__(self) -> None:
        """Refuse a floor that is no share."""
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor must be within [0, 1]; got floor={self.floor}")

    def allocate(self, demand: Demand) -> I32:
        """Split each layer by its heads' scores: (n_layer, n_head_kv)."""
        check_demand(demand)
        least, most = demand.least, demand.most
        n_layer, n_head_kv = least.shape
        of_layer = least.sum(axis=1, dtype=np.int32)
        totals = fit_rows(
            np.ones(n_layer), of_layer, most.sum(axis=1, dtype=np.int32), demand.total
        )
        n_select = totals - of_layer
        counts = count_selected(demand.scores, demand.candidates, n_select)
        even = n_select[:, None] / n_head_kv
        wanted = least + (1 - self.floor) * counts + self.floor * even
        return np.stack(
            [
                fit_rows(wanted[layer], least[layer], most[layer], int(totals[layer]))
                for layer in range(n_layer)
            ]
        )
