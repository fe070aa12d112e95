"""What an allocator is: it splits a total over layers and KV heads, and loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from restkv_local.types import F32, I32


class Allocator(Protocol):
    """Splits the rows of a cache over layers and KV heads.

    Attributes
    ----------
    name : str
        Name in the registry and on the command line.
    summary : str
        The idea in one line.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    def allocate(
        self, budget: int, n_layer: int, n_head_kv: int, scores: Sequence[F32] | None = None
    ) -> I32:
        """Split ``budget * n_layer * n_head_kv`` rows.

        Parameters
        ----------
        budget : int
            Rows a layer and KV head on average.
        n_layer, n_head_kv : int
            Layers that are evicted, and KV heads of each.
        scores : sequence over layers of ndarray of shape (n_head_kv, n_kv), optional
            For allocators that follow the scores.

        Returns
        -------
        ndarray of shape (n_layer, n_head_kv), int32
            Sums to ``budget * n_layer * n_head_kv`` exactly.
        """
        ...
