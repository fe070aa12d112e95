"""LRU: evict what has gone longest without being looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from restkv_local.policies.base import Policy
from restkv_local.types import F32, Observation, Tracked


@dataclass(frozen=True, kw_only=True)
class LRU(Policy):
    """The least recently used row goes first.

    A query uses a row if it gives it at least its fair share of attention, 1
    over the rows it sees; the score is the position of the newest token that
    did. A new row counts as used by itself.

    Notes
    -----
    No paper was found that defines LRU for single tokens of a KV cache. The
    threshold is that of cold-compress' attention thresholding [1]_, which counts
    hits where this keeps the newest one; one query head of a group is enough.

    In bounded prefill, rows are used by every query read while they were in the
    cache; in full prefill, by every query of the prompt; in decode, by every
    generated token. No window is observed, so a question chooses nothing.

    Positions are exact in float32 up to 2**24 tokens. Beyond, uses next to each
    other may count as one, and of equal rows the older one stays.

    References
    ----------
    .. [1] AnswerDotAI/cold-compress.
    """

    name: ClassVar[str] = "lru"
    summary: ClassVar[str] = "rows used last, where use is a fair share of a query's attention"
    source: ClassVar[str] = "least recently used; threshold of AnswerDotAI/cold-compress"
    track: ClassVar[Tracked] = "last_use"

    def score(self, observation: Observation) -> F32:
        """Score the rows of one layer: (n_head_kv, n_kv), positions."""
        assert observation.tracked is not None, "score() got less than track asked for"
        return observation.tracked
