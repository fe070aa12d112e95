"""LaCache: each layer keeps other tokens, sparser the older they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from restkv_local.errors import ConfigError
from restkv_local.policies.streamingllm import StreamingLLM
from restkv_local.types import F32, I32, Bool, Observation


@dataclass(frozen=True, kw_only=True)
class LaCache(StreamingLLM):
    """A ladder over the layers: a compaction keeps ``n_after`` of ``n_before`` tokens, other ones in each.

    With ``L`` layers, ``n_before = 1 + ceil((L - span) / (span - overlap))`` and
    ``n_after = min(ceil(span / (span - overlap)), n_before)``; layer ``l`` keeps
    the offsets ``s .. s + n_after - 1`` of each ladder, ``s = l mod
    (n_before - n_after + 1)``, so that neighbouring layers keep neighbouring tokens. Tokens
    that survived are compacted again when they are older. All KV heads of a layer are
    treated alike, no attention is looked at. What :meth:`score` returns is recency,
    which splits budgets equally; the ladder comes in when the candidates are known.

    Attributes
    ----------
    span : int, optional
        Layers that keep a token. By default half of them, as in the repository's
        runs on 32 and 28 layers.
    overlap : int
        Layers that a token shares with the next one, below ``span``.

    Notes
    -----
    The repository [2]_ keeps a cursor: it compacts from the oldest rows on, as much
    as it must, and starts over when it meets the newest rows. Instead of a state,
    this takes all from true positions. The *level* of a token is how many
    compactions it would survive in this layer; rows go in order of ``position +
    width * level``, lowest first. A token of one level more thus lives ``width``
    tokens longer:

    - Where no token is missing, nothing was compacted before, and ``width`` is the
      number of candidates: all lose one level before any loses two, oldest first.
      That is the cursor on its way through a whole prompt.
    - Else ``width`` is the rows that one round of the cursor frees, which is the
      text that enters meanwhile, so each round makes what it finds one level sparser.

    Ladders stand at multiples of ``n_before`` in the text, not in the cache, so that
    layers stay complementary whatever was protected or evicted unequally. The
    repository offsets a repeated compaction by the same ``s``, and tokens between
    two ladders are lost in all layers; here the next digit of ``l`` is used, and a
    token of every offset survives in some layer while there are layers enough. Where it
    would divide by zero, because ``span`` covers all layers, ladders of
    ``n_after + 1`` tokens are used.

    In bounded prefill, this is the iterative compaction of the paper, a chunk at a
    time; in full prefill one thinning of the whole prompt; in decode again iterative,
    many tokens an event where the repository compacts after each. The newest ``L``
    tokens stay there, ``n_recent`` here. Its keys are rotated by their place in the cache: that
    is compact positions, and a choice of the session.

    References
    ----------
    .. [1] Shi et al., "LaCache", ICML 2025, arXiv:2507.14204.
    .. [2] GATECH-EIC/LaCache.
    """

    name: ClassVar[str] = "lacache"
    summary: ClassVar[str] = "other tokens in each layer, sparser the older they are"
    source: ClassVar[str] = "Shi et al., LaCache, ICML 2025, arXiv:2507.14204"

    span: int | None = None
    overlap: int = 0

    def __post_init__(self) -> None:
        """Refuse ladders that do not climb."""
        if (self.span is not None and self.span <= self.overlap) or self.overlap < 0:
            raise ConfigError(
                "overlap must be at least 0 and below span;"
                f" got overlap={self.overlap}, span={self.span}"
            )

    def rerank(self, scores: F32, observation: Observation, candidates: Bool, n_select: I32) -> F32:
        """Order the rows by when the ladder drops them: (n_head_kv, n_kv), in [0, 1)."""
        n_kv = scores.shape[1]
        positions = observation.positions[:, :n_kv]
        n_before, n_after = self.ladder(observation.n_layer)
        level = levels(positions, observation.layer, n_before, n_after)
        n_rows = np.count_nonzero(candidates, axis=1)
        whole = np.count_nonzero(positions >= 0, axis=1) == positions.max(axis=1) + 1
        width = np.where(whole, n_rows, (1 - n_after / n_before) * n_rows)
        leaves = positions + width[:, None] * level
        # Ranks: positions stop being distinct in float32 at 2**24 tokens.
        order = np.argsort(leaves, axis=1, kind="stable")
        rank = np.empty(scores.shape, np.float32)
        np.put_along_axis(rank, order, np.arange(n_kv, dtype=np.float32)[None], axis=1)
        return rank / np.float32(n_kv)

    def ladder(self, n_layer: int) -> tuple[int, int]:
        """Tokens of a ladder, and how many of them each layer keeps."""
        span = (n_layer + 1) // 2 if self.span is None else self.span
        step = max(span - self.overlap, 1)
        n_before = 1 + max(math.ceil((n_layer - span) / step), 0)
        n_after = min(math.ceil(span / step), n_before)
        return max(n_before, n_after + 1), n_after


def levels(positions: I32, layer: int, n_before: int, n_after: int) -> I32:
    """How many compactions each token survives in a layer.

    Parameters
    ----------
    positions : ndarray of shape (...), int32
        True positions; -1 where there is no row.
    layer : int
        Index of the layer.
    n_before, n_after : int
        Tokens of a ladder, and those kept.

    Returns
    -------
    ndarray of shape (...), int32
    """
    n_offset = n_before - n_after + 1
    place, digits = positions, layer
    alive = positions >= 0
    level = np.zeros(positions.shape, np.int32)
    while alive.any():
        block, offset = np.divmod(place, n_before)
        step = offset - digits % n_offset
        alive = alive & (step >= 0) & (step < n_after)
        level += alive
        if not block[alive].any():  # one ladder holds what is left of the whole text
            break
        place = block * n_after + step  # among the survivors
        digits //= n_offset
    return level
