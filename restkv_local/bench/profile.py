"""Says what the time of reading or writing went to: the graph of the text, the guide, scoring, compaction, Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from restkv_local.native import NativeContext

PARTS: Final = ("decode", "guide", "score", "compact", "python")

_SCORING: Final = ("score", "key_direction", "query_moments", "expected", "mean_rotation", "read")


class Profile:
    """A clock in every native call of one context; what they do not take is Python's.

    Parameters
    ----------
    native : NativeContext
        Its calls are timed from now on.

    Notes
    -----
    "score" and "compact" are the native calls alone. The engine's ``score_ms`` and ``compact_ms`` hold the
    planning and the bookkeeping around them too, which here are part of "python". What attention is of
    "decode" no counter tells: see ``ceiling``.
    """

    def __init__(self, native: NativeContext) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._newest_decode = 0.0
        self._start = time.perf_counter()
        self._time(native, "decode", "decode")
        self._time(native, "compact", "compact")
        for name in _SCORING:
            self._time(native, name, "score")
        self._watch_probes(native)

    def start(self) -> None:
        """Begin anew."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._start = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Return the seconds since :meth:`start`, by part; they add up to all of them."""
        total = time.perf_counter() - self._start
        seconds = dict(self._seconds)
        seconds["python"] = total - sum(seconds.values())
        return seconds

    def _time(self, native: NativeContext, name: str, part: str) -> None:
        call: Callable[..., Any] = getattr(native, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self._seconds[part] += spent
                if part == "decode":
                    self._newest_decode = spent

        setattr(native, name, timed)

    def _watch_probes(self, native: NativeContext) -> None:
        """Tell a probe from text: its rows are removed again."""
        call: Callable[[int], None] = native.remove_tail

        def remove_tail(n: int) -> None:
            if n > 0:
                self._seconds["decode"] -= self._newest_decode
                self._seconds["guide"] += self._newest_decode
                self._newest_decode = 0.0
            call(n)

        setattr(native, "remove_tail", remove_tail)  # noqa: B010 (mypy lets nobody assign a method)
