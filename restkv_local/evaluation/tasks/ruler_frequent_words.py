"""RULER's frequent words extraction: coded words whose frequencies fall off by a power law."""

from __future__ import annotations

import math
import random
import string
from typing import Final

from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request

_N_LETTERS: Final = 6
_N_ANSWER: Final = 50
_NOISE: Final = "..."  # the most frequent "word", not asked for
_ZETA_2: Final = math.pi**2 / 6


def make_sample(request: Request, index: int) -> Sample:
    """Build one sample: the word of rank k stands ``n / (zeta(2) k**2)`` times, ranks 2 to 4 are asked for.

    Notes
    -----
    RULER (scripts/data/synthetic/freq_words_extraction.py, alpha 2.0): a vocabulary of one word for each 50 tokens,
    rank 1 is dots.
    """
    n_vocabulary = max(5, (request.n_tokens - _N_ANSWER) // 50)

    def build(n_words: int) -> Sample:
        rng = random.Random(request.key("ruler-fwe", index))
        coded: dict[str, None] = {_NOISE: None}
        while len(coded) < n_vocabulary:
            coded["".join(rng.choices(string.ascii_lowercase, k=_N_LETTERS))] = None
        words: list[str] = []
        for rank, word in enumerate(coded, start=1):
            words += [word] * int(n_words / (_ZETA_2 * rank**2))
        rng.shuffle(words)
        # The wording is RULER's (scripts/data/synthetic/constants.py): results depend on it.
        return Sample(
            task="ruler-fwe",
            id=request.name(index),
            context=(
                "Read the following coded text and track the frequency of each coded word. Find the three most"
                f" frequently appeared coded words. {' '.join(words)}\n"
            ),
            question=(
                "Question: Do not provide any explanation. Please ignore the dots '....'. What are the three most"
                " frequently appeared words in the above coded text?"
            ),
            answer_prefix=(
                " Answer: According to the coded text above, the three most frequently appeared words are:"
            ),
            references=tuple(list(coded)[1:4]),
            max_new_tokens=_N_ANSWER,
            metric="match_all",
            extra={"length": request.n_tokens},
        )

    # 100: the fewest words at which ranks 2 to 5 stand 15, 6, 3 and 2 times, so that the answer is unique.
    return request.fit(build, least=100)
