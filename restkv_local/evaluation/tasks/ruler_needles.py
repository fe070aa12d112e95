"""RULER's eight needle tasks: keys and values hidden in noise, essays or other needles."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from restkv_local.evaluation.haystack import NOISE, find_breaks, read_haystack, repeat_text
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request
from restkv_local.evaluation.words import Kind, draw, draw_distinct

_NEEDLE: Final = "One of the special magic {kind} for {key} is: {value}."

# RULER's grid of 40 depths in percent.
_DEPTHS: Final = tuple(round(100 * i / 39) for i in range(40))


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """What is hidden in what: a line of RULER's synthetic.yaml.

    Attributes
    ----------
    haystack : {"noise", "essay", "needle"}
        Repeated sentences, running text, or needles with other keys.
    keys, values : {"words", "numbers", "uuids"}
        What keys and values are.
    n_keys, n_values, n_queries : int
        Keys hidden, values of each key, keys asked for.
    """

    haystack: Literal["noise", "essay", "needle"]
    keys: Kind = "words"
    values: Kind = "numbers"
    n_keys: int = 1
    n_values: int = 1
    n_queries: int = 1


VARIANTS: Final[dict[str, Needles]] = {
    "niah_single_1": Needles(haystack="noise"),
    "niah_single_2": Needles(haystack="essay"),
    "niah_single_3": Needles(haystack="essay", values="uuids"),
    "niah_multikey_1": Needles(haystack="essay", n_keys=4),
    "niah_multikey_2": Needles(haystack="needle"),
    "niah_multikey_3": Needles(haystack="needle", keys="uuids", values="uuids"),
    "niah_multivalue": Needles(haystack="essay", n_values=4),
    "niah_multiquery": Needles(haystack="essay", n_keys=4, n_queries=4),
}


def make_sample(name: str, request: Request, index: int) -> Sample:
    """Build one sample of a variant.

    Notes
    -----
    RULER (scripts/data/synthetic/niah.py) may draw the same key twice; here keys and values differ, so that the
    references are the only answer. Its essays are Paul Graham's, here they are the shipped text or the user's,
    cut into sentences at full stops in place of NLTK's model.
    """
    needles = VARIANTS[name]
    task = f"ruler-{name}"
    text = repeat_text(read_haystack(request.haystack)) if needles.haystack == "essay" else None

    def build(size: int) -> Sample:
        rng = random.Random(request.key(task, index))
        keys = draw_distinct(needles.keys, needles.n_keys, rng)
        drawn = draw_distinct(needles.values, needles.n_keys * needles.n_values, rng)
        values = [drawn[i :: needles.n_keys] for i in range(needles.n_keys)]
        hidden = [
            _NEEDLE.format(kind=needles.values, key=key, value=value)
            for key, of_key in zip(keys, values, strict=True)
            for value in of_key
        ]
        rng.shuffle(hidden)
        asked = rng.sample(range(needles.n_keys), needles.n_queries)
        if text is not None:
            context = _hide_in_sentences(text.first(size), hidden, rng)
        elif needles.haystack == "noise":
            context = _hide_in_lines([NOISE] * size, hidden, rng)
        else:
            context = _hide_in_lines(draw_distractors(needles, size, keys, rng), hidden, rng)
        introduction, question, prefix = _word(needles, [keys[i] for i in asked])
        return Sample(
            task=task,
            id=request.name(index),
            context=f"{introduction}\n{context}\n",
            question=question,
            answer_prefix=prefix,
            references=tuple(value for i in asked for value in values[i]),
            max_new_tokens=128,
            metric="match_all",
            extra={"length": request.n_tokens},
        )

    return request.fit(build)


def _word(needles: Needles, keys: list[str]) -> tuple[str, str, str]:
    """Return introduction, question and the answer's beginning, in the singular where one value is asked for.

    The wording is RULER's (scripts/data/synthetic/constants.py and niah.py): results depend on it.
    """
    one = needles.n_queries * needles.n_values == 1
    kind = needles.values[:-1] if one else needles.values
    some, are, what = ("A", "is", "What is") if one else ("Some", "are", "What are all")
    asked = ", ".join(keys[:-1]) + f", and {keys[-1]}" if len(keys) > 1 else keys[0]
    return (
        f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it."
        f" I will quiz you about the {kind} afterwards.",
        f"{what} the special magic {kind} for {asked} mentioned in the provided text?",
        f" The special magic {kind} for {asked} mentioned in the provided text {are}",
    )


def _hide_in_sentences(text: str, hidden: list[str], rng: random.Random) -> str:
    """Put the needles between sentences, at depths of the grid."""
    breaks = find_breaks(text)
    offsets = [*breaks, len(text)]
    places = sorted(int(len(breaks) * depth / 100) for depth in rng.sample(_DEPTHS, len(hidden)))
    parts, last = [], 0
    for place, needle in zip(places, hidden, strict=True):
        parts += [text[last : offsets[place]].strip(), needle]
        last = offsets[place]
    return " ".join(filter(None, [*parts, text[last:].strip()]))


def _hide_in_lines(lines: list[str], hidden: list[str], rng: random.Random) -> str:
    """Put the needles before lines drawn at random."""
    places = sorted(rng.sample(range(len(lines)), len(hidden)), reverse=True)
    for place, needle in zip(places, hidden, strict=True):
        lines.insert(place, needle)
    return "\n".join(lines)


def draw_distractors(needles: Needles, n: int, keys: list[str], rng: random.Random) -> list[str]:
    """Return needles with other keys than those asked for."""
    lines: list[str] = []
    while len(lines) < n:
        key, value = draw(needles.keys, rng), draw(needles.values, rng)
        if key not in keys:
            lines.append(_NEEDLE.format(kind=needles.values, key=key, value=value))
    return lines
