"""Random words, numbers and UUIDs for keys and values, from lists that the package wonderwords ships."""

from __future__ import annotations

import random
import uuid
from functools import cache
from importlib.resources import files
from typing import Literal

from restkv_local.optional import check_installed

Kind = Literal["words", "numbers", "uuids"]


@cache
def read_words(kind: Literal["noun", "adjective", "verb"]) -> tuple[str, ...]:
    """Return a list of English words, sorted.

    Raises
    ------
    ConfigError
        If wonderwords is not installed.
    """
    check_installed("wonderwords", "wonderwords", "a task made of random words", extra="eval")
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(sorted(set(text.split())))


@cache
def _read_all_words() -> tuple[str, ...]:
    return tuple(sorted({*read_words("noun"), *read_words("adjective"), *read_words("verb")}))


def draw(kind: Kind, rng: random.Random) -> str:
    """Draw an adjective-noun pair, a number of seven digits or a UUID, as RULER's keys and values are."""
    if kind == "words":
        return f"{rng.choice(read_words('adjective'))}-{rng.choice(read_words('noun'))}"
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def draw_distinct(kind: Kind, n: int, rng: random.Random) -> list[str]:
    """Draw ``n`` that differ from each other."""
    drawn: dict[str, None] = {}
    while len(drawn) < n:
        drawn[draw(kind, rng)] = None
    return list(drawn)


def draw_vocabulary(n: int, rng: random.Random) -> list[str]:
    """Draw ``n`` different words of any kind; beyond the lists' end pairs of an adjective and a noun."""
    words = _read_all_words()
    drawn = rng.sample(words, min(n, len(words)))
    return drawn + draw_distinct("words", n - len(drawn), rng)
