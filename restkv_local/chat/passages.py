"""Where in the documents an answer looked: for a person to check it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from restkv_local.documents import Document
from restkv_local.types import F64

# Tokens summed around a place: a sentence, not a word.
_N_AROUND: Final = 32

# Characters of a passage that are shown at most.
_N_SHOWN: Final = 240

_SPACE: Final = re.compile(r"\s")
_SENTENCE_END: Final = re.compile(r"[.!?…]['\")\]]*\s+|\n\s*\n")


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document that an answer rests on.

    Attributes
    ----------
    document : str
        Name of the document.
    place : str
        Such as ``page 3`` or ``lines 12-15``.
    text : str
        The sentence that was looked at most, or what is near it where sentences are long.
    share : float
        Of the attention that the documents received, 0 to 1.
    """

    document: str
    place: str
    text: str
    share: float


class TokenMap:
    """Which tokens of a prompt are which characters of which document.

    Parameters
    ----------
    pieces : sequence of bytes
        The prompt, token by token.
    documents : sequence of Document
        As they follow each other in the prompt. One whose text the tokens do not give back
        letter by letter is left out.
    """

    def __init__(self, pieces: Sequence[bytes], documents: Sequence[Document]) -> None:
        # Searched, not computed: a vocabulary may put a space or its BOS before the prompt.
        text = b"".join(pieces).decode(errors="replace")
        self._documents: list[Document] = []
        self._starts: list[int] = []
        at = 0
        for document in documents:
            start = text.find(document.text, at)
            if start >= 0:
                self._documents.append(document)
                self._starts.append(start)
                at = start + len(document.text)
        self._ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self._bytes = np.cumsum([0, *(len(char.encode()) for char in text)], dtype=np.int64)

    def mask(self, n_seen: int) -> F64:
        """1 for tokens of a document, 0 for all others: (n_seen,)."""
        mask = np.zeros(n_seen)
        for document, start in zip(self._documents, self._starts, strict=True):
            first, last = self._token(start), self._token(start + len(document.text) - 1)
            mask[first : last + 1] = 1.0
        return mask

    def passage(self, token: int, share: float) -> Passage:
        """Return the sentence that a token stands in, or what is near it where sentences are long."""
        at = self._character(token)
        index = max(bisect_right(self._starts, at) - 1, 0)
        document = self._documents[index]
        at = min(max(at - self._starts[index], 0), len(document.text) - 1)
        start, end = _sentence(document.text, at)
        shown = " ".join(document.text[start:end].split())
        return Passage(document.name, document.locate(start, end), shown, share)

    def _token(self, character: int) -> int:
        """Index of the token that a character of the prompt is in."""
        at = self._bytes[min(character, len(self._bytes) - 1)]
        return int(np.searchsorted(self._ends, at, side="right"))

    def _character(self, token: int) -> int:
        """Character of the prompt that a token begins with."""
        begins = 0 if token == 0 else self._ends[min(token, len(self._ends)) - 1]
        return int(np.searchsorted(self._bytes, begins, side="right")) - 1


def find_passages(attention: F64, tokens: TokenMap, n_most: int = 3) -> tuple[Passage, ...]:
    """Return the passages that received the most attention, the most first.

    Parameters
    ----------
    attention : ndarray of shape (n_seen,)
        What each token of the sequence received; see ``Engine.attended``.
    tokens : TokenMap
        What they stand for.
    n_most : int
        Passages at most. One with less than a tenth of the first one's attention is left out.
    """
    received = attention * tokens.mask(len(attention))
    total = received.sum()
    if total <= 0:
        return ()
    around = np.convolve(received, np.ones(_N_AROUND), "same")
    found: list[Passage] = []
    for _ in range(n_most):
        best = int(around.argmax())
        share = min(float(around[best] / total), 1.0)  # not above by rounding
        if share <= 0 or (found and share < found[0].share / 10):
            break
        first, last = max(best - _N_AROUND // 2, 0), best + _N_AROUND // 2
        passage = tokens.passage(first + int(received[first:last].argmax()), share)
        if passage.text:
            found.append(passage)
        around[max(best - _N_AROUND, 0) : best + _N_AROUND] = 0
    return tuple(found)


def _sentence(text: str, at: int) -> tuple[int, int]:
    """Return the ends of the sentence around a character, shortened to what is near it."""
    first, last = max(0, at - _N_SHOWN // 2), min(len(text), at + _N_SHOWN // 2)
    before = [match.end() for match in _SENTENCE_END.finditer(text, first, at + 1)]
    behind = _SENTENCE_END.search(text, at, last)
    # Words stay whole where there are spaces between them.
    words = [match.start() for match in _SPACE.finditer(text, first, last)]
    if before:
        first = before[-1]
    elif first:
        first = next((space + 1 for space in words if space < at), first)
    if behind:
        last = behind.end()
    elif last < len(text):
        last = next((space for space in reversed(words) if space > at), last)
    return first, last
