"""CAKE: more rows for layers whose attention is spread out and moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.allocators.base import Allocator, Demand, fit_total
from restkv_local.errors import ConfigError
from restkv_local.types import I32, Observation, Reduction


@dataclass(frozen=True, kw_only=True)
class Cake(Allocator):
    """Layers share by preference, the KV heads of a layer alike.

    The preference of a layer is ``entropy ** (1/tau1) * variance ** (1/tau2)``
    of its window's attention to the rows before the window: ``-a log a`` summed
    over rows, queries and heads, and the variance over the queries, summed over
    rows and heads. Of the rows that scores choose, a layer gets the share
    ``preference / sum(preference)``. Protected rows come on top, as the window
    does in the source.

    Attributes
    ----------
    tau1, tau2 : float
        Above 0; larger is flatter. The source tunes both for each model and
        budget, from 0.4 to 2.3; the default is Llama 3.1's at 128 rows.

    Notes
    -----
    Means over the queries stand for the source's sums, and the variance is not
    corrected for the number of queries: one factor for all layers. Where no
    layer prefers anything (one query has no variance) all get the same.

    The source hands what a layer cannot use to the others in equal parts, here
    in proportion to what they want. It evicts while the prompt is still going
    through the layers, to hold one full layer at a time; here all layers have
    been read when rows are split, and nothing is left to cascade. Its score
    of a row, mean plus ``gamma`` times variance, is a policy's affair.

    References
    ----------
    .. [1] Qin et al., "CAKE", ICLR 2025, arXiv:2503.12491;
       repository antgroup/cakekv.
    """

    name: ClassVar[str] = "cake"
    summary: ClassVar[str] = "more rows for layers whose attention is spread out and moves"
    source: ClassVar[str] = "Qin et al., CAKE, ICLR 2025, arXiv:2503.12491"
    reductions: ClassVar[tuple[Reduction, ...]] = ("mean", "square", "entropy")

    tau1: float = 1.6
    tau2: float = 0.6

    def __post_init__(self) -> None:
        """Refuse exponents that mean nothing."""
        if not (self.tau1 > 0 and self.tau2 > 0):
            raise ConfigError(
                f"tau1 and tau2 must be above 0; got tau1={self.tau1}, tau2={self.tau2}"
            )

    def allocate(self, demand: Demand) -> I32:
        """Split by the layers' preferences: (n_layer, n_head_kv).

        Raises
        ------
        ConfigError
            If the policy observes no attention.
        """
        least = demand.least
        preference = np.array([self._preference(layer) for layer in demand.observations])
        total = preference.sum()
        share = preference / total if total > 0 else np.full(len(least), 1 / len(least))
        n_select = demand.total - int(least.sum())
        selected = share * n_select / least.shape[1]
        return fit_total(least + selected[:, None], demand)

    def _preference(self, observation: Observation) -> float:
        """How much one layer wants, up to a factor common to all."""
        if not observation.attention.keys() >= set(self.reductions):
            raise ConfigError(
                "allocation 'cake' splits by the attention of the observed queries, but the policy"
                " observes none; choose a policy that does, such as restkv, snapkv or caote, or"
                " another allocation"
            )
        past = slice(0, max(observation.n_kv - observation.n_window, 0))
        mean, square, entropy = (observation.attention[name][:, past] for name in self.reductions)
        variance = square - mean * mean
        # Of attention that stays the same this leaves rounding, which must not pass for a preference.
        variance[variance < 4 * np.finfo(np.float32).eps * square] = 0.0
        spread = max(float(entropy.sum(dtype=np.float64)), 0.0)
        moved = float(variance.sum(dtype=np.float64))
        return float(spread ** (1 / self.tau1) * moved ** (1 / self.tau2))
