"""RULER's common words extraction: a numbered list in which ten words appear more often than all others."""

from __future__ import annotations

import random
from typing import Final

from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request
from restkv_local.evaluation.words import draw_vocabulary

_N_COMMON: Final = 10
_LONG: Final = 4096  # tokens from which RULER's usual repetitions fit

# The wording is RULER's (scripts/data/synthetic/constants.py): results depend on it.
_INTRODUCTION: Final = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that"
    " appear most often."
)
_QUESTION: Final = "Question: What are the 10 most common words in the above list?"
_PREFIX: Final = " Answer: The top 10 words that appear most often in the list are:"


def make_sample(request: Request, index: int) -> Sample:
    """Build one sample: an example with its answer, then the list.

    Notes
    -----
    RULER (scripts/data/synthetic/common_words_extraction.py): common words stand 30 times and others 3 times, 10 and 3
    in the example of 40 words; below 4,096 tokens 6 times and once, 3 and once in the example of 20. Beyond
    the 8,700 words of wonderwords RULER takes another list of English words, here adjective-noun pairs follow.
    """
    long = request.n_tokens >= _LONG

    def build(n_words: int) -> Sample:
        rng = random.Random(request.key("ruler-cwe", index))
        example, common = _write_list(40, 10, 3, rng) if long else _write_list(20, 3, 1, rng)
        answer = " ".join(f"{i}. {word}" for i, word in enumerate(common, start=1))
        text, common = _write_list(n_words, *((30, 3) if long else (6, 1)), rng)
        return Sample(
            task="ruler-cwe",
            id=request.name(index),
            context=(
                f"{_INTRODUCTION}\n{example}\n{_QUESTION}{_PREFIX} {answer}\n{_INTRODUCTION}\n{text}\n"
            ),
            question=_QUESTION,
            answer_prefix=_PREFIX,
            references=tuple(common),
            max_new_tokens=120,
            metric="match_all",
            extra={"length": request.n_tokens},
        )

    return request.fit(build, least=_N_COMMON + 1)


def _write_list(
    n_words: int, n_often: int, n_seldom: int, rng: random.Random
) -> tuple[str, list[str]]:
    """Return a numbered list of ``n_words`` different words and those that stand in it ``n_often`` times."""
    words = draw_vocabulary(n_words, rng)
    common, others = words[:_N_COMMON], words[_N_COMMON:]
    entries = common * n_often + others * n_seldom
    rng.shuffle(entries)
    return " ".join(f"{i}. {word}" for i, word in enumerate(entries, start=1)), common
