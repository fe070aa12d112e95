"""llama.cpp's context shift: the older half of the text goes each time the cache is full."""

from __future__ import annotations

from collections.abc import Sequence

from restkv_local.engine import Engine


class ContextShift:
    """Fills a cache to its last row, then drops the older half of what follows the first ``n_sink``.

    Parameters
    ----------
    engine : Engine
        Open, its policy that which keeps first and newest tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens, at most ``n_ubatch`` at a time."""
        engine = self._engine
        done = 0
        while done < len(tokens):
            if engine.native.room < 1:
                self._shift()
            n = min(engine.config.n_ubatch, engine.native.room)
            engine.read(tokens[done : done + n], evict=False)
            done += n

    def step(self, token: int) -> None:
        """Append one token that was written."""
        self.read([token])

    def _shift(self) -> None:
        engine = self._engine
        used = engine.rows.used
        # Rounded as llama.cpp's n_discard is.
        engine.use(budget=used - (used - engine.config.n_sink) // 2)
        engine.evict()
