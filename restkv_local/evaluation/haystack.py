"""Texts without end to hide things in: a user's document, the manual that ships with Python, or seeded prose."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from restkv_local.documents import read_document
from restkv_local.errors import InputError
from restkv_local.evaluation.prose import write_paragraphs

NOISE: Final = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
)

_RULE: Final = re.compile(r"^[ |+*=\-^~\"'#.:]{4,}$\n?", re.MULTILINE)
_SENTENCE_END: Final = re.compile(r"[.!?][\"')\]]*\s+|[。！？]+[」』”’）]*\s*")
_SPACE: Final = re.compile(r"\s+")
# Characters: a text whose sentences, or words, are longer than that on average has none to speak of.
_LONG: Final = 1000
_STEP: Final = 100


class Haystack:
    """A text of which any number of characters can be had."""

    def __init__(self, pieces: Iterable[str]) -> None:
        """Take pieces that never end; each brings its own separator."""
        self._pieces: Iterator[str] = iter(pieces)
        self._text = ""

    def first(self, n_chars: int) -> str:
        """Return the first ``n_chars`` characters, less the word that they would break off."""
        parts, n = [self._text], len(self._text)
        while n <= n_chars:
            parts.append(next(self._pieces))
            n += len(parts[-1])
        self._text = "".join(parts)
        # A text without spaces has one where it begins anew alone.
        least = max(0, n_chars - _STEP)
        end = max(self._text.rfind(space, least, n_chars + 1) for space in " \n")
        return self._text[: end if end > 0 else n_chars]


def repeat_text(text: str) -> Haystack:
    """Return a text that begins anew at its end, its white space evened out."""
    return Haystack(itertools.repeat(" ".join(text.split()) + " "))


def make_prose(seed: int) -> Haystack:
    """Return seeded prose that holds no number and never repeats a paragraph on purpose."""
    return Haystack(f"{paragraph}\n\n" for paragraph in write_paragraphs(seed))


def read_haystack(path: Path | None) -> str:
    """Return a user's document, or the shipped text where there is none.

    Raises
    ------
    InputError
        If the document cannot be read, or no text ships with this Python.
    """
    return shipped_text() if path is None else read_document(path).text


@cache
def shipped_text() -> str:
    """Return the language manual that ships with Python: about 450,000 characters, 110,000 tokens.

    Raises
    ------
    InputError
        If this Python came without it.

    Notes
    -----
    It differs a little between versions of Python, and so do the prompts made of it: compare results of one
    version, or give a text of your own.
    """
    return "\n\n".join(shipped_topics().values())


@cache
def shipped_topics() -> dict[str, str]:
    """Return the manual's topics by name, without lines that only underline or frame."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError(
            "this Python came without its manual (pydoc_data), so there is no text to hide things in;"
            " give a text file as haystack"
        ) from None
    return {name: _RULE.sub("", topics[name]).strip() for name in sorted(topics)}


def find_sentence_starts(text: str) -> list[int]:
    """Return the offsets at which sentences begin, 0 first."""
    return _find_starts(_SENTENCE_END, text)


def find_breaks(text: str) -> list[int]:
    """Return the offsets at which something may be put in, 0 first.

    Where sentences begin; of a text that has hardly any, words; of one that has none either, every hundredth
    character. Else all that is hidden in a table or in verse would stand at its beginning.
    """
    for separator in (_SENTENCE_END, _SPACE):
        starts = _find_starts(separator, text)
        if len(starts) * _LONG >= len(text):
            return starts
    return list(range(0, len(text), _STEP))


def _find_starts(separator: re.Pattern[str], text: str) -> list[int]:
    return [0, *(match.end() for match in separator.finditer(text) if match.end() < len(text))]


def split_sentences(text: str) -> list[str]:
    """Split running text into sentences, spaces between them left out."""
    starts = find_sentence_starts(text)
    return [
        text[start:end].strip()
        for start, end in itertools.pairwise([*starts, len(text)])
        if text[start:end].strip()
    ]
