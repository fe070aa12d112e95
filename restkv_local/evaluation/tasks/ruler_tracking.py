"""RULER's variable tracking: a chain of assignments in noise; every name of the chain is asked for."""

from __future__ import annotations

import itertools
import random
import string
from typing import Final

from restkv_local.evaluation.fitting import fit_sample
from restkv_local.evaluation.haystack import NOISE, split_sentences
from restkv_local.evaluation.sample import Sample
from restkv_local.evaluation.tasks.base import Request

_N_HOPS: Final = 4
_N_EXAMPLE_TOKENS: Final = 500
_N_ANSWER: Final = 30


def make_sample(request: Request, index: int) -> Sample:
    """Build one sample: an example with its answer, then the text and the question.

    Notes
    -----
    RULER (scripts/data/synthetic/variable_tracking.py): one chain, four hops, so five names; names of five letters,
    three in the example, which fills 500 tokens. RULER draws one example for all samples and changes its names;
    here each sample draws its own.
    """

    def build_example(n_noise: int) -> Sample:
        rng = random.Random(request.key("ruler-vt-example", index))
        return _compose(request, index, n_noise, 3, rng)

    # Where the whole text has 1,000 tokens the example of RULER's size would be half of it already.
    n_example = min(_N_EXAMPLE_TOKENS, request.n_tokens // 2)
    example = fit_sample(build_example, request.measure, n_example)
    shown = f"{example.text}{' '.join(example.references)}\n\n"

    def build(n_noise: int) -> Sample:
        rng = random.Random(request.key("ruler-vt", index))
        return _compose(request, index, n_noise, 5, rng, shown)

    return request.fit(build)


def _compose(
    request: Request, index: int, n_noise: int, n_letters: int, rng: random.Random, shown: str = ""
) -> Sample:
    names: dict[str, None] = {}
    while len(names) <= _N_HOPS:
        names["".join(rng.choices(string.ascii_uppercase, k=n_letters))] = None
    variables, value = list(names), str(rng.randint(10_000, 99_998))
    chain = [f"VAR {variables[0]} = {value}"]
    chain += [f"VAR {new} = VAR {old} " for old, new in itertools.pairwise(variables)]
    lines = [f"{NOISE}\n"] * n_noise
    if len(lines) <= len(chain):
        # Too few blocks to stand between the links: their sentences do.
        lines = split_sentences(NOISE) * n_noise
    places = sorted(rng.sample(range(len(lines)), len(chain)))
    for n_before, (place, link) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + n_before, link)
    text = " ".join(lines)
    # The wording is RULER's (scripts/data/synthetic/constants.py), "assgined" too: results depend on it.
    return Sample(
        task="ruler-vt",
        id=request.name(index),
        context=(
            f"{shown}Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
            f"{text}\n"
        ),
        question=f"Question: Find all variables that are assigned the value {value} in the text above.",
        answer_prefix=(
            f" Answer: According to the chain(s) of variable assignment in the text above, {len(variables)} variables"
            f" are assgined the value {value}, they are: "
        ),
        references=tuple(variables),
        max_new_tokens=_N_ANSWER,
        metric="match_all",
        extra={"length": request.n_tokens},
    )
