"""The moments of a conversation that it can be taken back to without reading."""

from __future__ import annotations

from dataclasses import dataclass

from restkv_local.sequence import Snapshot
from restkv_local.storage.snapshot_file import snapshot_bytes
from restkv_local.types import F32


@dataclass(frozen=True, slots=True)
class Moment:
    """A bounded cache as it was, and what it stood for.

    Attributes
    ----------
    n_turns : int
        Complete turns.
    text : str
        What the cache stood for, as text.
    snapshot : Snapshot
        The cache.
    logits : ndarray of shape (n_vocab,), float32, or None
        Right after a prompt: what the answer's first token is drawn from. None between turns.
    """

    n_turns: int
    text: str
    snapshot: Snapshot
    logits: F32 | None = None

    @property
    def n_bytes(self) -> int:
        """Memory it takes; a snapshot of an unbounded cache may be all of it."""
        n_logits = 0 if self.logits is None else self.logits.nbytes
        return snapshot_bytes(self.snapshot) + n_logits + len(self.text)


class Moments:
    """Moments in the order they came; the oldest go when all together pass a limit.

    Parameters
    ----------
    limit_bytes : int
        Memory for all of them; 0 keeps none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: list[Moment] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._kept)

    def takes(self, n_bytes: int) -> bool:
        """Tell whether a moment of this size would be kept at all."""
        return n_bytes <= self._limit_bytes and self._limit_bytes > 0

    def add(self, moment: Moment) -> None:
        """Keep a moment; of those right after a prompt only the newest stays."""
        self._kept = [
            old
            for old in self._kept
            if (old.logits is None and old.n_turns != moment.n_turns)
            or (old.logits is None) != (moment.logits is None)
        ]
        self._kept.append(moment)
        while self._kept and sum(one.n_bytes for one in self._kept) > self._limit_bytes:
            del self._kept[0]

    def between(self, n_turns: int) -> Moment | None:
        """Return the moment after ``n_turns`` turns, before the next question."""
        found = (m for m in self._kept if m.n_turns == n_turns and m.logits is None)
        return next(found, None)

    def longest(self, text: str) -> Moment | None:
        """Return the moment that stands for the longest beginning of ``text`` and that one can go on from."""
        found = [
            moment
            for moment in self._kept
            if text.startswith(moment.text)
            and (len(moment.text) < len(text) or moment.logits is not None)
        ]
        return max(found, key=lambda moment: len(moment.text), default=None)

    def cut(self, n_turns: int) -> None:
        """Forget what came after ``n_turns`` turns."""
        self._kept = [m for m in self._kept if m.n_turns < n_turns or m is self.between(n_turns)]

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
