"""Needles in a haystack: a sentence hidden at a depth of a long text, and a question that only it answers."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final

from restkv_local.evaluation.haystack import (
    NOISE,
    Haystack,
    find_breaks,
    make_prose,
    read_haystack,
    repeat_text,
)
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request, Task

THINGS: Final = (
    "red lighthouse", "silver telescope", "northern ferry", "oak cabinet", "glass bridge",
    "iron anchor", "blue schooner", "stone archive", "copper still", "tall windmill",
)  # fmt: skip

_PAPER_NEEDLE: Final = "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day."
_PAPER_QUESTION: Final = "The best thing to do in San Francisco is:"

_PASSKEY_INTRODUCTION: Final = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will quiz you"
    " about the important information."
)

_N_MANY: Final = 4  # needles: as many as RULER's multi-key, multi-value and multi-query tasks


def spread_depths(n: int) -> list[float]:
    """Return ``n`` depths in percent, evenly from the beginning to the end; one alone is in the middle."""
    return [50.0] if n == 1 else [round(100 * i / (n - 1), 1) for i in range(n)]


def plant(text: str, needles: Sequence[str], depths: Sequence[float]) -> str:
    """Put each needle before the sentence that holds its depth, or the word, see :func:`find_breaks`.

    Parameters
    ----------
    text : str
        The haystack.
    needles : sequence of str
        Whole sentences.
    depths : sequence of float
        Percent of the haystack's characters that come before, one for each needle.
    """
    starts = find_breaks(text)
    places = sorted(
        (starts[bisect_right(starts, depth * len(text) / 100) - 1], needle)
        for needle, depth in zip(needles, depths, strict=True)
    )
    parts, last = [], 0
    for place, needle in places:
        parts += [text[last:place], needle, " "]
        last = place
    return "".join([*parts, text[last:]])


def make_number_needles(request: Request) -> Iterator[Sample]:
    """Yield a seven-digit number in prose at each depth, asked for in plain words.

    The haystack is seeded prose without numbers, or the user's document. Substring scores the number, ROUGE-1
    the whole sentence.
    """
    for index, depth in enumerate(spread_depths(request.n_generated)):
        yield _hide_number(request, index, depth)


def make_paper_needles(request: Request) -> Iterator[Sample]:
    """Yield the needle of the eviction papers at each depth: a sandwich in San Francisco.

    The wrapper, the needle, 30 new tokens that end at a line break's own token and the score (10 x ROUGE-1 F1 of
    needle and answer) are those of KVCache-Factory (run_needle_in_haystack.py). That one fills up with Paul
    Graham's essays, measures depth in tokens, leaves 200 tokens free and puts a needle of depth 100 after the last
    token; here it is the shipped text or the user's, characters, the answer's tokens, and before the last sentence. The
    prompt is used as it is there, without a chat template.
    """
    for index, depth in enumerate(spread_depths(request.n_generated)):
        yield _hide_sandwich(request, index, depth)


def make_many_needles(request: Request) -> Iterator[Sample]:
    """Yield four numbers at random depths of prose, all asked for at once; each found counts a quarter."""
    for index in range(request.n_generated):
        yield _hide_many(request, index)


def make_passkeys(request: Request) -> Iterator[Sample]:
    """Yield a five-digit pass key at each depth of repeated sentences.

    Prompt and score follow InfiniteBench's passkey (src/prompt.py, yarn-mistral), whose data is made of the
    same sentences; the answer's beginning stands after the template's header instead of in the question.
    """
    for index, depth in enumerate(spread_depths(request.n_generated)):
        yield _hide_passkey(request, index, depth)


def _hide_number(request: Request, index: int, depth: float) -> Sample:
    rng = random.Random(request.key("niah", index))
    haystack = _open_haystack(request, index)
    thing, number = rng.choice(THINGS), _draw_number(rng)
    needle = f"The registration number of the {thing} is {number}."

    def build(n_chars: int) -> Sample:
        return Sample(
            task="niah",
            id=request.name(index),
            context=plant(haystack.first(n_chars), [needle], [depth]) + "\n\n",
            question=f"What is the registration number of the {thing}?",
            references=(number,),
            max_new_tokens=32,
            metric="substring",
            more_metrics=("rouge_1",),
            extra={"length": request.n_tokens, "depth": depth, "needle": needle},
        )

    return request.fit(build)


def _hide_sandwich(request: Request, index: int, depth: float) -> Sample:
    haystack = repeat_text(read_haystack(request.haystack))

    def build(n_chars: int) -> Sample:
        text = plant(haystack.first(n_chars), [f"\n{_PAPER_NEEDLE}\n"], [depth])
        return Sample(
            task="niah-paper",
            id=request.name(index),
            context=f"<|im_start|> This is a very long story book: <book> {text} </book>.\n",
            question=f" Based on the content of the book, Question: {_PAPER_QUESTION} \nAnswer:",
            references=(_PAPER_NEEDLE.removeprefix(_PAPER_QUESTION[:-1]).strip(" ."),),
            max_new_tokens=30,
            metric="rouge_1",
            more_metrics=("substring",),
            uses_template=False,
            stop_tokens=("\n",),
            extra={"length": request.n_tokens, "depth": depth, "needle": _PAPER_NEEDLE},
        )

    return request.fit(build)


def _hide_many(request: Request, index: int) -> Sample:
    rng = random.Random(request.key("niah-multi", index))
    haystack = _open_haystack(request, index)
    things = rng.sample(THINGS, _N_MANY)
    numbers = [_draw_number(rng) for _ in things]
    depths = [round(rng.uniform(0, 100), 1) for _ in things]
    needles = [
        f"The registration number of the {thing} is {number}."
        for thing, number in zip(things, numbers, strict=True)
    ]
    asked = ", ".join(f"the {thing}" for thing in things[:-1]) + f" and the {things[-1]}"

    def build(n_chars: int) -> Sample:
        return Sample(
            task="niah-multi",
            id=request.name(index),
            context=plant(haystack.first(n_chars), needles, depths) + "\n\n",
            question=f"What are the registration numbers of {asked}?",
            references=tuple(numbers),
            max_new_tokens=96,
            metric="match_all",
            extra={"length": request.n_tokens, "depths": depths},
        )

    return request.fit(build)


def _hide_passkey(request: Request, index: int, depth: float) -> Sample:
    rng = random.Random(request.key("passkey", index))
    haystack = repeat_text(NOISE)
    key = str(rng.randint(10_000, 99_999))
    needle = f"The pass key is {key}. Remember it. {key} is the pass key."

    def build(n_chars: int) -> Sample:
        text = plant(haystack.first(n_chars), [needle], [depth])
        return Sample(
            task="passkey",
            id=request.name(index),
            context=f"{_PASSKEY_INTRODUCTION}\n\n{text}\n\n",
            question="What is the pass key?",
            answer_prefix="The pass key is",
            references=(key,),
            max_new_tokens=10,  # five digits may be five tokens, and a colon and a space may come first
            metric="first_integer",
            extra={"length": request.n_tokens, "depth": depth, "needle": needle},
        )

    return request.fit(build)


def _open_haystack(request: Request, index: int) -> Haystack:
    if request.haystack is not None:
        return repeat_text(read_haystack(request.haystack))
    # Every sample has prose of its own, so that several of them are more than one draw.
    return make_prose(request.seed * 1000 + index)


def _draw_number(rng: random.Random) -> str:
    return str(rng.randint(1_000_000, 9_999_999))


TASKS: Final = (
    Task(
        name="niah",
        family="needles",
        summary="a number hidden in prose at each depth, asked for in plain words",
        make=make_number_needles,
    ),
    Task(
        name="niah-paper",
        family="needles",
        summary="the eviction papers' needle and ROUGE-1 score, without chat template",
        make=make_paper_needles,
    ),
    Task(
        name="niah-multi",
        family="needles",
        summary="four numbers hidden in prose, all asked for",
        make=make_many_needles,
    ),
    Task(
        name="passkey",
        family="needles",
        summary="a pass key hidden in repeated sentences at each depth",
        make=make_passkeys,
    ),
)
