"""Turns the bytes of tokens into text that is safe to show: whole characters, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    r"""Text as it grows, cut at the first stop string that is complete.

    A character may span tokens, and so may a stop string: what could still become one is held back until
    it is decided. The result does not depend on how the bytes were cut into pieces.

    Parameters
    ----------
    stops : sequence of str
        None of them empty. Of several that end at the same character the longest counts.

    Examples
    --------
    >>> stream = TextStream(["\nQ:"])
    >>> [stream.feed(piece) for piece in (b"Mars", b".\n", b"\xc3", b"\xa9t\xc3\xa9\n", b"Q: why")]
    ['Mars', '.', '', '\nété', '']
    >>> stream.stopped
    True
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # decoded, not given out
        self.n_given = 0  # characters given out
        self.stopped = False

    @property
    def n_decoded(self) -> int:
        """Characters decoded so far, those held back included."""
        return self.n_given + len(self._held)

    def feed(self, data: bytes) -> str:
        """Take the bytes of one token; return the text that is decided now."""
        return self._take(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back: nothing more will come. A broken character becomes U+FFFD."""
        return self._take(self._decoder.decode(b"", final=True), final=True)

    def _take(self, text: str, *, final: bool = False) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        ends = [(text.find(stop) + len(stop), len(stop)) for stop in self._stops if stop in text]
        if ends:
            end, length = min((end, -length) for end, length in ends)
            self.stopped = True
            return self._give(text, end + length)
        n_held = 0 if final else max((_overlap(text, stop) for stop in self._stops), default=0)
        return self._give(text, len(text) - n_held)

    def _give(self, text: str, n: int) -> str:
        self._held = "" if self.stopped else text[n:]
        self.n_given += n
        return text[:n]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` begin ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
